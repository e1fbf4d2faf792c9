"""Deployments to real ssh servers by real workers, some of which are killed or stopped in the middle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from db.connection import get_db_session
from db.repositories import ApplicationRepository
from db.service import DatabaseService
from db.services import applications, deployments, hosts, rollouts
from tests.e2e.platform import Deployed, Platform
from tests.e2e.process import until
from tests.tasks.hosted import needs_sshd
from tests.tasks.sshd import Server, make_key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), needs_sshd]

#: Leaves evidence on the host: that it began, is there, and ended, and for which deployment.
LOGGED = """
log=../../log
echo "begin $OPS_DEPLOYMENT_ID $OPS_FENCE 0" >>$log
for n in 1 2 3; do sleep 0.05; echo "alive $OPS_DEPLOYMENT_ID $OPS_FENCE 0" >>$log; done
while [ -e ../../hold ]; do sleep 0.05; done
echo "end $OPS_DEPLOYMENT_ID $OPS_FENCE 0" >>$log"""


class Estate:
    """Some servers, an infrastructure of them, and an application that is deployed there."""

    def __init__(self, platform: Platform, folder: Path, count: int) -> None:
        self.platform = platform
        self.folder = folder
        key = make_key(folder / "key")
        self.servers = [
            Server(f"web{n}", f"127.0.0.{n + 60}", folder / f"web{n}", key, folder / "srv").start()
            for n in range(1, count + 1)
        ]
        with get_db_session() as session:
            service = DatabaseService(session)
            service.store_api_key(platform.user, "ssh", "key", key.read_text())
            settings = {"user": self.servers[0].user, "key": "ssh/key", "base": str(folder / "srv"), "lock_seconds": 20}
            place = service.register_infrastructure("estate", platform.user, driver="ssh", settings=settings)
            for each in self.servers:
                hosts.add(
                    session, infrastructure=place, name=each.name, address=each.address, port=each.port,
                    host_key=each.host_key,
                )  # fmt: skip
            self.place = place.id
            self.app = self.add_application(service, "web")

    @staticmethod
    def add_application(service: DatabaseService, name: str) -> int:
        rollout = {"strategy": "rolling", "batch": 1}
        configuration = {"rollout": rollout, "shell": True}
        return service.register_application(name, [LOGGED], configuration=configuration).id

    def bring(self, artifact: str) -> None:
        """From now on there is content to be brought to the hosts."""
        with get_db_session() as session:
            application = ApplicationRepository(session).require(self.app)
            applications.edit(
                session, application=application, configuration=application.configuration | {"artifact": artifact}
            )

    def deploy(self, version: str = "1", digest: str | None = None) -> Deployed:
        with get_db_session() as session:
            made = deployments.create(
                session, user_id=self.platform.user, application_id=self.app, infrastructure_id=self.place,
                version=version, digest=digest,
            )  # fmt: skip
            session.flush()
            return Deployed(made.id, str(made.job_id), deployments.lock_key(made))

    def retry(self, deployed: Deployed, **options: bool) -> Deployed:
        with get_db_session() as session:
            made = deployments.retry(session, deployment_id=deployed.id, **options)
            return Deployed(made.id, str(made.job_id), deployed.key)

    def statuses(self, deployed: Deployed) -> list[str]:
        with get_db_session() as session:
            return [str(each.status) for each in rollouts.list_(session, deployment_id=deployed.id)]

    def hold(self, server: Server) -> Path:
        """From now on a command on this host does not end until the file is gone."""
        server.app().mkdir(exist_ok=True)
        (server.app() / "hold").touch()
        return server.app() / "hold"

    def log(self, server: Server) -> list[list[str]]:
        path = server.app() / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait_begun(self, server: Server, deployed: Deployed) -> None:
        until(
            lambda: ["begin", str(deployed.id)] in [line[:2] for line in self.log(server)],
            f"{deployed} has begun on {server.name}",
        )

    def check_none_overlapped(self) -> None:
        """At the hosts: between a begin and its last sign of life nobody else begins, and fences only grow."""
        for server in self.servers:
            seen: list[tuple[str, str]] = []
            for _, deployment, fence, _ in self.log(server):
                if not seen or seen[-1] != (deployment, fence):
                    seen.append((deployment, fence))
            assert len(set(seen)) == len(seen), f"runs overlapped on {server.name}: {seen}"
            assert all(int(one[1]) < int(two[1]) for one, two in pairwise(seen)), f"{server.name}: {seen}"


@pytest.fixture
def estate(platform: Platform) -> Iterator[Estate]:
    folder = Path(tempfile.mkdtemp(prefix="ops-hosts-"))
    made: list[Estate] = []
    try:
        made.append(Estate(platform, folder, 3))
        yield made[0]
    finally:
        for each in made:
            for server in each.servers:
                (server.app() / "hold").unlink(missing_ok=True)
                server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_version_is_put_on_all_hosts_and_each_is_told(platform: Platform, estate: Estate) -> None:
    platform.worker("w1", processes=1)
    deployed = estate.deploy("v1/x")
    assert platform.wait_ended(deployed) == "success"
    assert estate.statuses(deployed) == ["healthy"] * 3
    assert all(str(each.current()).startswith(f"v1~x-{deployed.id}-") for each in estate.servers)
    assert "BEGIN OPENSSH" not in str(platform.rows("SELECT content FROM deployment_logs"))


def test_content_that_is_pinned_is_brought_and_other_content_reaches_no_host(
    platform: Platform, estate: Estate, tmp_path: Path
) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "page").write_text("one")
    estate.bring(f"{tmp_path}/{{version}}")
    platform.worker("w1", processes=1)
    assert platform.wait_ended(estate.deploy("v1")) == "success"
    assert [(each.app() / "current" / "page").read_text() for each in estate.servers] == ["one"] * 3
    before = [each.current() for each in estate.servers]
    other = estate.deploy("v1", digest="sha256:" + "0" * 64)
    assert platform.wait_ended(other) == "failed"
    assert "the content of v1 is another by now" in str(platform.rows("SELECT error_message FROM deployments"))
    assert [each.current() for each in estate.servers] == before


@pytest.mark.slow
@pytest.mark.parametrize("held", [0, 1, 2])
def test_a_worker_that_is_killed_leaves_what_is_known_and_a_retry_converges(
    platform: Platform, estate: Estate, held: int
) -> None:
    platform.worker("w1", processes=1)
    before = estate.deploy("1")
    assert platform.wait_ended(before) == "success"
    hold = estate.hold(estate.servers[held])
    deployed = estate.deploy("2")
    estate.wait_begun(estate.servers[held], deployed)
    platform.processes[0].kill()
    assert platform.wait_ended(deployed) in ("error: interrupted", "error: lost")
    assert estate.statuses(deployed) == ["healthy"] * held + ["switched"] + ["skipped"] * (2 - held)
    running = [str(each.current()).partition("-")[0] for each in estate.servers]
    assert running == ["2"] * (held + 1) + ["1"] * (2 - held)
    platform.worker("w2", processes=1)
    again = estate.retry(deployed, failed_hosts=True)
    hold.unlink()
    assert platform.wait_ended(again) == "success"
    assert estate.statuses(deployed) == ["healthy"] * 3
    estate.check_none_overlapped()


@pytest.mark.slow
def test_no_host_ever_has_two_deployments_at_once(platform: Platform, estate: Estate) -> None:
    """Four workers, competing requests, one worker stopped for longer than its lease."""
    platform.lease(5)
    workers = platform.workers("w1", "w2", "w3", "w4", processes=2)
    asked = [estate.deploy(str(number)) for number in range(1, 13)]
    estate.wait_begun(estate.servers[0], asked[1])
    holder = next(str(job["worker"]) for job in map(platform.job, (a.job for a in asked)) if job["state"] == "running")
    frozen = next(each for each in workers if holder.startswith(f"{each.name}@"))
    with frozen.frozen():
        ends = [platform.wait_ended(each, 240) for each in asked]
    assert set(ends) <= {"success", "failed", "error: interrupted", "error: lost"}
    assert ends.count("success") >= 8
    estate.check_none_overlapped()
