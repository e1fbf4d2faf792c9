"""The compose stack of one test run: a copy of the repository in a folder of its own, under a name of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.compose.load import PLACES
from tests.e2e.process import until

ROOT = Path(__file__).parents[2]
SERVICES = ("postgres", "valkey", "deployments", "checks", "control", "beat", "flower", "serve")
COPIED = ("db", "migrations", "tasks", "worker")
FILES = ("Dockerfile", ".dockerignore", "docker-compose.yml", "pyproject.toml", "README.md", "LICENSE",
         "requirements.txt", "requirements-embedded.txt")  # fmt: skip
#: Where deployments leave evidence outside of the platform.
OVERRIDE = """services:
  deployments: {volumes: ["./evidence:/evidence"]}
  load: &load
    image: ai-manage-ops:${OPS_IMAGE_TAG}
    profiles: [load]
    user: "${OPS_UID}:${OPS_GID}"
    environment: {DATABASE_URL_FILE: /run/secrets/database_url}
    secrets: [database_url]
    volumes: ["./evidence:/evidence", "./load.py:/load.py:ro"]
    networks: [backend]
    command: [python, /load.py, "0.8"]
"""
COMMAND = 'echo "begin $OPS_JOB_ID" >> /evidence/log; sleep 1; echo "end $OPS_JOB_ID" >> /evidence/log'
FINAL = "('success','failed','error','cancelled','rolled_back')"


class Stack:
    """`docker compose` in a folder; remembers what was done to it, for the report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"opstest{os.getpid()}"
        self.settings: dict[str, str] = {}
        self.done: list[str] = []
        self.healthy_after: dict[str, float] = {}
        self.at_rest: dict[str, str] = {}
        with socket.socket() as flower, socket.socket() as serve:
            flower.bind(("127.0.0.1", 0))
            serve.bind(("127.0.0.1", 0))
            self.port, self.serve_port = flower.getsockname()[1], serve.getsockname()[1]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
        return kept | self.settings | {
            "COMPOSE_PROJECT_NAME": self.name, "OPS_IMAGE_TAG": self.name, "OPS_FLOWER_PORT": str(self.port),
            "OPS_SERVE_PORT": str(self.serve_port),
            "LANG": "C.UTF-8",
        }  # fmt: skip

    def remove_leftovers(self) -> None:
        """Of a run that was killed before it could end."""
        for name in self.run("docker", "compose", "ls", "-aq").split():
            owner = re.fullmatch(r"opstest(\d+)", name)
            if owner and not Path(f"/proc/{owner[1]}").exists():
                self.run("docker", "compose", "-p", name, "down", "-v", "-t", "5", check=False)

    def copy(self) -> None:
        """What a clone has and an image is made of; then what `make env` writes."""
        for name in COPIED:
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, self.folder / name)
        shutil.copy(Path(__file__).with_name("load.py"), self.folder)
        (self.folder / "docker-compose.override.yml").write_text(OVERRIDE)
        (self.folder / "load.py").chmod(0o644)
        evidence = self.folder / "evidence"
        evidence.mkdir()
        evidence.chmod(0o777)

    def run(self, *argv: str, check: bool = True, seconds: float = 300) -> str:
        done = subprocess.run(
            argv, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def compose(self, *argv: str, check: bool = True) -> str:
        return self.run("docker", "compose", *argv, check=check)

    def ops(self, *argv: str, service: str = "control") -> Any:
        """`ops` inside a container; its JSON."""
        return json.loads(self.compose("exec", "-T", service, "ops", "--json", *argv))

    def sql(self, statement: str) -> list[list[str]]:
        text = self.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "ops", "-XAtc", statement)
        return [line.split("|") for line in text.splitlines()]

    def containers(self, *services: str, ended: bool = False) -> list[dict[str, Any]]:
        """What `docker inspect` says of those of the stack, by service and number."""
        ids = self.compose("ps", "-q", *(["-a"] if ended else []), *services).split()
        found = json.loads(self.run("docker", "inspect", *ids)) if ids else []
        return sorted(found, key=lambda each: each["Name"])

    def up(self, *more: str) -> None:
        """Up, and wait until each container is healthy."""
        self.compose("up", "-d", *more)
        self.wait_healthy()

    def wait_healthy(self) -> None:
        """How long each service took for that at its first start stays."""

        def healthy() -> bool:
            found = {each["Id"]: each for each in self.containers(*SERVICES)}
            well = {id for id, each in found.items() if each["State"].get("Health", {}).get("Status") == "healthy"}
            for each in (found[id] for id in well):
                started = datetime.fromisoformat(each["State"]["StartedAt"][:19] + "+00:00")
                self.healthy_after.setdefault(service_of(each), (datetime.now(UTC) - started).total_seconds())
            return well == set(found) and {service_of(each) for each in found.values()} == set(SERVICES)

        until(healthy, "every container is healthy", 180)

    def is_up(self) -> bool:
        """The servers answer, and every container runs again."""
        running = all(each["State"]["Running"] for each in self.containers(*SERVICES, ended=True))
        return running and bool(
            self.compose("exec", "-T", "postgres", "pg_isready", "-h", "127.0.0.1", check=False).count("accepting")
        )

    def kill(self, container: dict[str, Any]) -> None:
        """As a crash: its first process gets KILL from outside, and the restart policy acts."""
        if os.geteuid() == 0:
            os.kill(container["State"]["Pid"], signal.SIGKILL)
        else:
            self.run("docker", "kill", container["Id"])
            self.run("docker", "start", container["Id"])
        self.done.append(f"kill -9 {name_of(container)}")

    def stop_and_start(self, container: dict[str, Any]) -> None:
        self.run("docker", "stop", container["Id"])
        self.run("docker", "start", container["Id"])
        self.done.append(f"stop    {name_of(container)}")

    def begun(self) -> Counter[str]:
        """How often each job's effect has begun, and ended, as evidence outside says: ``begin ID``, ``end ID``."""
        path = self.folder / "evidence" / "log"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def let_watch(self) -> None:
        """One more user of Valkey, who may see what was refused to ours."""
        with (self.folder / "secrets" / "valkey_acl").open("a") as file:
            file.write("user watcher on >watch resetkeys resetchannels -@all +acl|log\n")

    def refused_by_broker(self) -> list[str]:
        text = self.compose(
            "exec",
            "-T",
            "valkey",
            "valkey-cli",
            "--no-auth-warning",
            "--user",
            "watcher",
            "--pass",
            "watch",
            "acl",
            "log",
        ).split()
        return [text[at + 1] for at, word in enumerate(text) if word == "object"]

    def note_rest(self) -> None:
        """What each container takes while nothing runs."""
        ids = [each["Id"] for each in self.containers()]
        lines = self.run("docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *ids).splitlines()
        for line in lines:
            name, used, *_ = line.split()
            self.at_rest[name.removeprefix(f"{self.name}-").rpartition("-")[0]] = used

    def table(self) -> list[str]:
        """Service by service: image size, memory at rest, time to healthy."""
        lines = [f"{'service':13}{'image':>9}{'at rest':>12}{'healthy after':>16}"]
        for each in {service_of(each): each for each in self.containers(*SERVICES)}.values():
            name = service_of(each)
            size = int(self.run("docker", "image", "inspect", "-f", "{{.Size}}", each["Image"])) / 1e6
            lines.append(f"{name:13}{size:6.0f} MB{self.at_rest[name]:>12}{self.healthy_after[name]:14.1f} s")
        return lines

    def register(self) -> None:
        """An application, and places to deploy it to."""
        self.ops("app", "add", "load", "--", "sh", "-c", COMMAND)
        for number in range(PLACES):
            self.ops("infra", "add", f"place-{number}")

    def unfinished(self) -> int:
        return int(self.sql(f"SELECT count(*) FROM deployments WHERE status NOT IN {FINAL}")[0][0])

    def count(self) -> int:
        """Of deployments; 0 while the database does not answer."""
        psql = ("psql", "-U", "postgres", "-d", "ops", "-XAtc", "SELECT count(*) FROM deployments")
        return int(self.compose("exec", "-T", "postgres", *psql, check=False).strip() or 0)

    def wait(self, look: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        return until(look, what, seconds)

    def end(self) -> None:
        """Remove everything that was made, but what the engine keeps to build faster next time."""
        self.compose(
            "--profile", "load", "--profile", "pgbouncer", "down", "-v", "-t", "5", "--remove-orphans", check=False
        )
        for image in ("ai-manage-ops", "ai-manage-ops-pgbouncer"):
            self.run("docker", "image", "rm", f"{image}:{self.name}", check=False)


def service_of(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def name_of(container: dict[str, Any]) -> str:
    return f"{service_of(container)}-{container['Config']['Labels']['com.docker.compose.container-number']}"
