"""The ssh driver as a worker runs it, on real servers: what it says of hosts, and what is on them."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from db.releases import reference
from tasks.releases import resolve
from tests.tasks.conftest import Program
from tests.tasks.sshd import CAN, NEEDS, Server, make_key

needs_sshd = pytest.mark.skipif(not CAN, reason=NEEDS)
ROLLOUT = {
    "strategy": "all", "batch": 1, "pause_seconds": 0.0, "max_failures": 0, "on_failure": "stop", "at_once": 20
}  # fmt: skip


class Hosts:
    """Servers, and plans for them."""

    def __init__(self, folder: Path, start: Callable[..., Program]) -> None:
        self.folder = folder
        self.key = make_key(folder / "client_key")
        self.servers: list[Server] = []
        self._start = start
        self.fence = 0

    def add(self, count: int = 1, *, memory: str | None = None) -> list[Server]:
        first = len(self.servers) + 1
        for number in range(first, first + count):
            place = self.folder / f"web{number}"
            server = Server(f"web{number}", f"127.0.0.{number + 10}", place, self.key, self.folder / "srv", memory)
            self.servers.append(server.start())
        return self.servers[first - 1 :]

    def plan(self, version: str = "1.0", *, command: str = "true", deployment: int = 0, **more: Any) -> dict[str, Any]:
        """A plan for all servers, of the next deployment. ``more``: parts of it, and settings of the driver."""
        self.fence += 1
        given = dict(more)
        rows = [
            {"name": each.name, "address": each.address, "port": each.port, "host_key": each.host_key,
             "good": given.get("good")} | given.get("host", {})
            for each in self.servers
        ]  # fmt: skip
        settings = {
            "user": self.servers[0].user, "key": self.key.read_text(), "sudo": None,
            "lock": None, "lock_seconds": 5.0, "keep": 3, "connect_seconds": 5.0, "keepalive_seconds": 1.0,
            "base": str(self.folder / "srv"),
        }  # fmt: skip
        environment = {
            "OPS_VERSION": version, "OPS_APPLICATION": "web", "OPS_INFRASTRUCTURE": "estate",
            "OPS_DEPLOYMENT_ID": str(deployment or self.fence),
            "OPS_JOB_ID": "job", "OPS_ATTEMPT": "1", "OPS_FENCE": str(given.get("fence", self.fence)),
        } | given.get("environment", {})  # fmt: skip
        return {
            "hosts": given.get("hosts", rows), "settings": settings | given.get("settings", {}),
            "environment": environment,
            "command": given.get("argv", ["/bin/sh", "-c", command]),
            "artifact": self._artifact(given.get("artifact"), version),
            "folder": str(self.folder),
            "health": {"interval_seconds": 0.05, "timeout_seconds": 1.0, "attempts": 3, "url": given.get("url")},
            "rollout": ROLLOUT | given.get("rollout", {}),
            "steps": {"prepare": [], "health": None, "timeout_seconds": 30} | given.get("steps", {}),
        }  # fmt: skip

    def _artifact(self, artifact: dict[str, Any] | str | None, version: str) -> dict[str, Any] | None:
        """As a worker pins it: of a place alone, with the digest that it has now."""
        if artifact is None or isinstance(artifact, dict):
            return artifact
        found = reference(artifact, version)
        digest = resolve(found, version, str(self.folder))
        return {"kind": found.kind.value, "location": found.location, "digest": digest}

    def begin(self, plan: dict[str, Any]) -> Run:
        """Start the driver with a plan."""
        program = self._start([sys.executable, "-P", "-m", "tasks.drivers.ssh"])
        program.say(plan)
        return Run(program)

    def deploy(self, *args: Any, **more: Any) -> Run:
        """A plan, to its end."""
        run = self.begin(self.plan(*args, **more))
        run.finish()
        return run


class Run:
    """One run of the driver, whose reports are answered as a worker does that stores them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.hosts: dict[str, dict[str, Any]] = {}
        self.order: list[tuple[str, str]] = []
        self.end: dict[str, Any] = {}

    def until(self, name: str, status: str, *, answer: bool = True) -> None:
        """Go on until this is said of a host (and answered)."""
        for event in self.program.events():
            said = self._hear(event, answer=answer)
            if (name, status) in said:
                return
        raise AssertionError(f"{name} never was {status}: {self.program.seen}")

    def until_printed(self, text: str) -> None:
        for event in self.program.events():
            self._hear(event)
            if text in str(event.get("text")):
                return
        raise AssertionError(f"{text} was never printed: {self.program.seen}")

    def finish(self) -> str:
        for event in self.program.events():
            self._hear(event)
        self.program.process.wait()
        return str(self.end.get("outcome"))

    def _hear(self, event: dict[str, Any], *, answer: bool = True) -> list[tuple[str, str]]:
        if event["event"] == "end":
            self.end = event
        if event["event"] != "host":
            return []
        said = [(host["name"], host["status"]) for host in event["hosts"]]
        self.order += said
        for host in event["hosts"]:
            self.hosts[host["name"]] = self.hosts.get(host["name"], {}) | host
        if answer:
            self.program.say({"ack": event["id"]})
        return said

    def statuses(self) -> dict[str, str]:
        return {name: host["status"] for name, host in self.hosts.items()}

    def message(self, name: str = "web1") -> str:
        return str(self.hosts[name].get("message"))


@pytest.fixture
def hosts(program: Callable[..., Program]) -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="ops-ssh-"))
    made = Hosts(folder, program)
    try:
        yield made
    finally:
        for server in made.servers:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
