"""Some ssh servers, infrastructure of them, and an application that is deployed there and leaves evidence on them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from db.connection import get_db_session
from db.repositories import ApplicationRepository
from db.service import DatabaseService
from db.services import applications, deployments, hosts, rollouts
from tests.e2e.platform import Deployed, Platform
from tests.e2e.process import until
from tests.tasks.sshd import Server, make_key

#: Leaves evidence on the host: that it began, is there, and ended, and for which deployment.
LOGGED = """
log=../../../log
[ $OPS_VERSION = "$(cat ../../fails 2>/dev/null)" ] && exit 1
echo "begin $OPS_DEPLOYMENT_ID $OPS_FENCE $OPS_VERSION" >>$log
for n in 1 2 3; do sleep 0.05; echo "alive $OPS_DEPLOYMENT_ID $OPS_FENCE $OPS_VERSION" >>$log; done
at command
echo "end $OPS_DEPLOYMENT_ID $OPS_FENCE $OPS_VERSION" >>$log"""

#: Tools of a host that wait where a test wants them to: they are what they are named after, otherwise.
TOOLS = {
    "at": """
[ -e "$OPS_GATES/hold-$1" ] || exit 0
touch "$OPS_GATES/at-$1"
while [ -e "$OPS_GATES/hold-$1" ]; do sleep 0.05; done""",
    "mv": """
case "$*" in *" current") at before; /bin/mv "$@"; code=$?; at after; exit $code ;; esac
exec /bin/mv "$@" """,
    "sftp-server": """
{ dd bs=65536 iflag=count_bytes count=100000 2>/dev/null; at upload; cat; } | /usr/lib/openssh/sftp-server""",
}


class Estate:
    """The servers, the infrastructure that has them all, and the application. All of them share a lock per host."""

    def __init__(self, platform: Platform, folder: Path, count: int) -> None:
        self.platform = platform
        self.folder = folder
        tools = folder / "tools"
        tools.mkdir()
        for name, text in TOOLS.items():
            (tools / name).write_text(f"#!/bin/sh{text}\n")
            (tools / name).chmod(0o755)
        key = make_key(folder / "key")
        self.servers = [self.server(n, key, tools).start() for n in range(1, count + 1)]
        user = platform.user
        with get_db_session() as session:
            DatabaseService(session).store_api_key(user, "ssh", "key", key.read_text())
        self.place = self.add_infrastructure("estate", self.servers)
        self.app = self.add_application("web", {"strategy": "rolling", "batch": 1})

    def server(self, number: int, key: Path, tools: Path) -> Server:
        folder = self.folder / f"web{number}"
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "OPS_GATES": str(folder), "TMPDIR": str(folder)}
        return Server(
            folder.name, f"127.0.0.{number + 60}", folder, key, self.folder / "srv",
            environment=environment, sftp=str(tools / "sftp-server"),
        )  # fmt: skip

    def add_infrastructure(self, name: str, servers: Sequence[Server]) -> int:
        settings = {
            "user": servers[0].user, "key": "ssh/key", "base": str(self.folder / "srv"), "lock_seconds": 60,
            "lock": str(self.folder / "srv" / "lock"), "keepalive_seconds": 2,
        }  # fmt: skip
        user = self.platform.user
        with get_db_session() as session:
            place = DatabaseService(session).register_infrastructure(name, user, driver="ssh", settings=settings)
            for each in servers:
                hosts.add(
                    session, infrastructure=place, name=each.name, address=each.address, port=each.port,
                    host_key=each.host_key,
                )  # fmt: skip
            return place.id

    @staticmethod
    def add_application(name: str, rollout: dict[str, object]) -> int:
        with get_db_session() as session:
            configuration = {"rollout": rollout, "shell": True}
            service = DatabaseService(session)
            return service.register_application(name, [LOGGED], configuration=configuration).id

    def configure(self, **configuration: object) -> None:
        """From now on the application is deployed so: ``artifact``, ``rollout``, ``steps``."""
        with get_db_session() as session:
            application = ApplicationRepository(session).require(self.app)
            applications.edit(session, application=application, configuration=application.configuration | configuration)

    def deploy(
        self, version: str = "1", digest: str | None = None, app: int | None = None, place: int | None = None
    ) -> Deployed:
        with get_db_session() as session:
            made = deployments.create(
                session, user_id=self.platform.user, application_id=app or self.app,
                infrastructure_id=place or self.place, version=version, digest=digest,
            )  # fmt: skip
            session.flush()
            return Deployed(made.id, str(made.job_id), deployments.lock_key(made))

    def retry(self, deployed: Deployed, **options: bool) -> Deployed:
        with get_db_session() as session:
            made = deployments.retry(session, deployment_id=deployed.id, **options)
            return Deployed(made.id, str(made.job_id), deployed.key)

    def known(self, deployed: Deployed) -> dict[str, tuple[str, str, str | None]]:
        """What is said of each host: its status, the message, and the release that it was left with."""
        with get_db_session() as session:
            rows = rollouts.list_(session, deployment_id=deployed.id)
            return {row.name: (str(row.status), row.message or "", row.release) for row in rows}

    def statuses(self, deployed: Deployed) -> list[str]:
        return [status for status, _, _ in self.known(deployed).values()]

    def running(self) -> list[str]:
        """The version that each host runs."""
        return [str(each.current()).partition("-")[0] for each in self.servers]

    @staticmethod
    def hold(server: Server, where: str = "command") -> Path:
        """From now on nothing on this host gets past this until the file is gone: ``upload``, ``before`` and ``after``
        the switch, ``prepare``, ``command``, ``health``."""
        held = server.folder / f"hold-{where}"
        held.touch()
        return held

    @staticmethod
    def wait_held(server: Server, where: str) -> None:
        until((server.folder / f"at-{where}").exists, f"{server.name} has come to {where}")

    @staticmethod
    def log(server: Server) -> list[list[str]]:
        path = server.base / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait_begun(self, server: Server, deployed: Deployed) -> None:
        until(
            lambda: ["begin", str(deployed.id)] in [line[:2] for line in self.log(server)],
            f"{deployed} has begun on {server.name}",
        )

    def check_none_overlapped(self) -> None:
        """At the hosts: between a begin and its last sign of life nobody else begins, and fences of a key only grow."""
        for server in self.servers:
            seen: list[tuple[str, str, str]] = []
            for _, *run in self.log(server):
                if not seen or seen[-1] != tuple(run):
                    seen.append((run[0], run[1], run[2]))
            assert len(set(seen)) == len(seen), f"runs overlapped on {server.name}: {seen}"
            keys = {str(row["id"]): row["key"] for row in self.platform.rows(
                "SELECT id, (application_id, infrastructure_id)::text AS key FROM deployments"
            )}  # fmt: skip
            for key in set(keys.values()):
                fences = [int(fence) for deployment, fence, _ in seen if keys[deployment] == key]
                assert all(one <= two for one, two in pairwise(fences)), f"{server.name}: {seen}"

    def stop(self) -> None:
        for server in self.servers:
            for held in server.folder.glob("hold-*"):
                held.unlink()
            server.stop()


def estate_of(platform: Platform, count: int) -> Iterator[Estate]:
    folder = Path(tempfile.mkdtemp(prefix="ops-hosts-"))
    made: list[Estate] = []
    try:
        made.append(Estate(platform, folder, count))
        yield made[0]
    finally:
        for each in made:
            each.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def estate(platform: Platform) -> Iterator[Estate]:
    """Three hosts."""
    yield from estate_of(platform, 3)
