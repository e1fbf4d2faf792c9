"""The engine of another machine: over TLS with a certificate of each side, and over ssh."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from db.drivers import DockerSettings
from db.fields import check
from tasks.drivers import PROGRAMS
from tasks.drivers.tunnel import ENGINE
from tests.certificates import certificate
from tests.tasks.sshd import CAN, NEEDS, Server, make_key
from tests.tasks.test_driver_docker import GATE, IMAGE, containers, end_of, engine, place

__all__ = ["engine", "place"]
SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


@dataclass
class Door:
    """The engine's socket behind TLS, for those whom our authority vouches for."""

    folder: Path
    port: int

    def secrets(self, who: str = "client", authority: str = "ca") -> dict[str, str]:
        names = {"tls.ca": f"{authority}.pem", "tls.cert": f"{who}.pem", "tls.key": f"{who}.key"}
        return {name: (self.folder / file).read_text() for name, file in names.items()}


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    folder = Path(tempfile.mkdtemp(prefix="ops-door-"))
    authority = certificate(folder, "ca")
    for name in ("server", "client"):
        certificate(folder, name, authority)
    other = certificate(folder, "other")
    certificate(folder, "stranger", other)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_welcome, args=(listening, context), daemon=True).start()
        yield Door(folder, listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
    shutil.rmtree(folder)


def _welcome(listening: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            guest, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_lead, args=(guest, context), daemon=True).start()


def _lead(guest: socket.socket, context: ssl.SSLContext) -> None:
    with (
        contextlib.suppress(OSError), guest, context.wrap_socket(guest, server_side=True) as inside,
        socket.socket(socket.AF_UNIX) as behind,
    ):  # fmt: skip
        behind.connect(SOCKET)
        back = threading.Thread(target=_pour, args=(behind, inside), daemon=True)
        back.start()
        _pour(inside, behind)
        behind.shutdown(socket.SHUT_WR)
        back.join()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            sink.sendall(piece)


def order(place: str, secrets: dict[str, str], **settings: Any) -> dict[str, Any]:
    names = {
        "OPS_VERSION": "v1", "OPS_FENCE": "1", "OPS_DEPLOYMENT_ID": "1", "OPS_JOB_ID": "job", "OPS_ATTEMPT": "1",
        "OPS_APPLICATION": place, "OPS_INFRASTRUCTURE": "there",
    }  # fmt: skip
    given = {"network": place, "settle_seconds": 0.5, "stop_seconds": 1, "pull": "never"} | settings
    return {
        "settings": check(DockerSettings, given).model_dump(mode="json"), "secrets": secrets, "image": IMAGE,
        "digest": None, "command": ["sleep", "600"], "environment": names, "health": GATE | {"url": None},
        "names": names, "lock": place,
    }  # fmt: skip


TLS = {"ca": "docker/ca", "cert": "docker/cert", "key": "docker/key"}


def test_an_engine_behind_tls_is_deployed_to(program, engine, place, door):
    driver = program(PROGRAMS["docker"])
    driver.say(order(place, door.secrets(), host=f"tcp://127.0.0.1:{door.port}", tls=TLS))
    assert end_of(driver) == ("ok", "")
    assert containers(engine, place) == {"v1": ("running", True)}


@pytest.mark.parametrize("wrong", [{"who": "stranger"}, {"authority": "other"}], ids=["client", "server"])
def test_whom_the_authority_does_not_vouch_for_is_not_spoken_to(program, engine, place, door, wrong):
    driver = program(PROGRAMS["docker"])
    driver.say(order(place, door.secrets(**wrong), host=f"tcp://127.0.0.1:{door.port}", tls=TLS))
    outcome, message = end_of(driver)
    assert outcome == "failed"
    assert message.startswith("the engine is not reached: ")
    assert containers(engine, place) == {}


class Far:
    """A machine with an engine, and an `ssh` of the worker that knows it, or does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = make_key(folder / "key")
        self.server = Server("there", "127.0.0.77", folder / "there", self.key, folder / "srv").start()
        self.host = f"ssh://{self.server.user}@{self.server.address}:{self.server.port}"

    def ssh(self, *, host_key: str | None = None, key: Path | None = None) -> str:
        """A PATH whose `ssh` stands for what the worker's user has configured in his home. There, too, the engine
        listens where it usually does; here it may be elsewhere."""
        known = self.folder / "known"
        known.write_text(f"[{self.server.address}]:{self.server.port} {host_key or self.server.host_key}\n")
        options = f"-i {key or self.key} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes"
        program = self.folder / "bin" / "ssh"
        program.parent.mkdir(exist_ok=True)
        lines = ("#!/bin/bash", f'exec {shutil.which("ssh")} -F none {options} "${{@//"{ENGINE}"/"{SOCKET}"}}"')
        program.write_text("\n".join(lines) + "\n")
        program.chmod(0o755)
        return f"{program.parent}:{os.environ['PATH']}"


@pytest.fixture
def far() -> Iterator[Far]:
    if not CAN:
        pytest.skip(NEEDS)
    folder = Path(tempfile.mkdtemp(prefix="ops-ssh-"))
    made = Far(folder)
    yield made
    made.server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def left_over() -> set[str]:
    return {each.name for each in Path(tempfile.gettempdir()).glob("ops-engine-*")}


def test_an_engine_is_reached_by_the_workers_own_ssh(program, engine, place, far):
    before = left_over()
    driver = program(PROGRAMS["docker"], PATH=far.ssh())
    driver.say(order(place, {}, host=far.host))
    assert end_of(driver) == ("ok", "")
    assert containers(engine, place) == {"v1": ("running", True)}
    assert left_over() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("host_key", "its ssh host key is not the one that this worker knows"),
        ("key", "ssh is not let in with the keys of this worker"),
        ("engine", "ssh: connection refused"),
    ],
)
def test_where_ssh_finds_no_way_one_line_says_why(program, place, far, wrong, said):
    other = make_key(far.folder / "other")
    options = {"host_key": {"host_key": other.with_suffix(".pub").read_text().strip()}, "key": {"key": other}}
    path = far.ssh(**options.get(wrong, {}))
    if wrong == "engine":
        far.server.stop()
    driver = program(PROGRAMS["docker"], PATH=path)
    driver.say(order(place, {}, host=far.host))
    assert end_of(driver) == ("failed", f"the engine is not reached: {said}")
