"""`ops demo`: the platform does its main job before your eyes, and is killed while it does.

A real application is deployed, a broken version is refused while the good one serves on, and the worker that deploys
the next version is killed with SIGKILL in the middle. At the end everything is counted, from the tables and from what
the deployments did outside; the exit code is 1 when anything is lost, run twice or missing in the audit trail.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from db.connection import get_db_session
from db.errors import SettingsError, Unavailable
from db.models import Deployment, Job
from db.repositories import ApplicationRepository, DeploymentLogRepository, InfrastructureRepository, UserRepository
from db.repositories.stats import StatsRepository
from db.service import DatabaseService
from db.states import DeploymentStatus
from worker import foreman
from worker.cli import acting, platform
from worker.cli.output import out
from worker.demo_count import Effects, Row, count, verdict
from worker.devstack import Stack

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "hello"
NAME, PLACE = "hello", "demo"
#: What a demo may take in all before it is called a failure.
STEP_SECONDS = 60.0


@dataclass
class Stage:
    """Where the demo plays: the folder of the application, its ports, and the ids of what it registered."""

    home: Path
    port: int
    user_id: int = 0
    application_id: int = 0
    infrastructure_id: int = 0

    @property
    def effects(self) -> Effects:
        return Effects.read(self.home / "effects.log")


def run(*, keep: bool) -> int:
    """Play it; answers the exit code."""
    if not EXAMPLE.is_dir():
        raise SettingsError("the demo's application is not here; it lies in the repository under docs/examples")
    stack = platform.here()
    crew: foreman.Foreman | None = None
    stage: Stage | None = None
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    alone = contextlib.ExitStack()
    try:
        platform.prepare(stack, say=out.note)
        if foreman.running_foreman(stack) is None:
            alone.enter_context(foreman.only_one(stack))
            port = foreman.free_port(None) if keep else None
            crew = foreman.Foreman(stack, flower_port=port)
            crew.start()
        stage = _set_up(stack.data_dir / "demo", crew)
        rows = _play(stage, crew)
        code = _report(rows, stage)
        _next(stack, rows[2], keep=keep, crew=crew)
        if keep and crew is not None:
            _stay(crew)
    finally:
        signal.signal(signal.SIGTERM, previous)
        if crew is not None:
            out.note("stopping everything that the demo started")
            crew.stop()
        if stage is not None and not (keep and crew is None):
            _stop_servers(stage)
        if crew is not None:
            from db import connection

            connection.dispose()
            stack.stop()
        alone.close()
    return code


def _set_up(home: Path, crew: foreman.Foreman | None) -> Stage:
    """Register the application and the infrastructure, and wait for workers."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "effects.log").unlink(missing_ok=True)
    stage = Stage(home, _two_free_ports()[0])
    _stop_servers(stage)
    stage.port, candidate = _two_free_ports()
    command: dict[str, Any] = {
        "command": [str(EXAMPLE / "deploy.sh")],
        "health_check_url": f"http://127.0.0.1:{candidate}/healthz",
        "configuration": {
            "environment": {
                "HELLO_HOME": str(home), "HELLO_PORT": str(stage.port), "HELLO_CANDIDATE_PORT": str(candidate),
                "HELLO_PYTHON": sys.executable,
            },
            "health": {"interval_seconds": 0.25, "attempts": 12},
            "promote": [str(EXAMPLE / "promote.sh")],
            "abort": [str(EXAMPLE / "abort.sh")],
            "timeout_seconds": 60,
        },
    }  # fmt: skip
    from db.services import applications

    with get_db_session(actor="ops demo", actor_type="system") as session:
        user = UserRepository(session).get_by_username(acting.user_name())
        user = user or UserRepository(session).list_(limit=1).items[0]
        service = DatabaseService(session, user)
        known = ApplicationRepository(session).get_by_name(NAME)
        application = (
            applications.edit(session, application=known, actor=user, **command)
            if known
            else service.register_application(NAME, **command)
        )
        place = InfrastructureRepository(session).get_by_name(PLACE) or service.register_infrastructure(PLACE, user.id)
        stage.user_id, stage.application_id, stage.infrastructure_id = user.id, application.id, place.id
    out.note("waiting for the workers")
    _until(lambda: _workers() > 0, "a worker for the queue deployments", crew)
    return stage


def _play(stage: Stage, crew: foreman.Foreman | None) -> list[int]:
    """The four scenes; answers the numbers of the deployments."""
    rows = []
    out.line("\n1. deploy v1: it starts, proves healthy and serves", style="bold")
    rows.append(_deploy(stage, "v1", crew))
    out.line(f"   http://127.0.0.1:{stage.port} says: {_ask(stage)}")

    out.line("\n2. deploy v2, which is broken: the health gate refuses it, v1 serves on", style="bold")
    rows.append(_deploy(stage, "v2", crew))
    out.line(f"   http://127.0.0.1:{stage.port} says: {_ask(stage)}")

    out.line("\n3. deploy v3, and kill its worker with SIGKILL in the middle", style="bold")
    rows.append(_deploy(stage, "v3", crew, kill=True))
    out.line(f"   http://127.0.0.1:{stage.port} says: {_ask(stage)}")

    out.line("\n4. deploy v3 again: the platform has recovered by itself", style="bold")
    rows.append(_deploy(stage, "v3", crew))
    out.line(f"   http://127.0.0.1:{stage.port} says: {_ask(stage)}")
    return rows


def _deploy(stage: Stage, version: str, crew: foreman.Foreman | None, *, kill: bool = False) -> int:
    """Ask for a deployment and watch it to its end."""
    from worker.app import app  # noqa: F401 - so that the commit rings

    with get_db_session() as session:
        made = DatabaseService(session).create_deployment(
            stage.user_id, stage.application_id, stage.infrastructure_id, version
        )
        number, job = made.id, made.job_id
    assert job is not None
    cursor = 0
    end = time.monotonic() + STEP_SECONDS
    killed = False
    while True:
        with get_db_session() as session:
            deployment = session.get(Deployment, number)
            assert deployment is not None
            chunks = list(DeploymentLogRepository(session).after(number, cursor))
            status, error = deployment.status, deployment.error_message
        for chunk in chunks:
            cursor = chunk.id
            for line in chunk.content.splitlines():
                out.line(f"   | {line}", style="dim")
        if kill and not killed and stage.effects.has_begun(job):
            _kill_worker_of(job)
            killed = True
        if status.is_final and not chunks:
            break
        if time.monotonic() > end:
            raise Unavailable(f"deployment {number} is still {status}", hint=f"ops show {number}")
        if crew is not None:
            crew.look()
        time.sleep(0.1)
    style = "green" if status is DeploymentStatus.SUCCESS else "red"
    out.line(f"   deployment {number}: {status}{f': {error}' if error else ''}", style=style)
    return number


def _kill_worker_of(job_id: UUID) -> None:
    """SIGKILL to the main process of the worker that holds the job."""
    with get_db_session() as session:
        job = session.get(Job, job_id)
        assert job is not None
        processes = StatsRepository(session).processes()
    pids = [p.pid for p in processes if p.kind == "worker" and p.name == job.worker and p.alive]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            out.line(f"   kill -9 {pid}  ({job.worker}, in the middle of it)", style="bold magenta")


def _report(numbers: list[int], stage: Stage) -> int:
    """The table and the line that counts; answers the exit code."""
    with get_db_session() as session:
        rows = [Row.read(session, number, stage.effects) for number in numbers]
        total = count(session, rows)
    out.line()
    out.table(
        "what happened",
        ("deployment", "version", "status", "attempts", "outcome", "effect outside", "why"),
        [(r.number, r.version, r.status, r.attempts, r.outcome, r.effect, r.error) for r in rows],
    )
    good = [row.status for row in rows] == ["success", "failed", "error", "success"]
    serves = _ask(stage) == (EXAMPLE / "releases" / "v3" / "greeting.txt").read_text().strip()
    out.result({"deployments": [vars(row) for row in rows], **vars(total), "as_expected": good and serves}, str(total))
    if not good:
        out.note("the deployments did not end as they should have: success, failed, error, success")
    if not serves:
        out.note("version 3 does not serve")
    return verdict(total, as_expected=good and serves)


def _next(stack: Stack, killed: int, *, keep: bool, crew: foreman.Foreman | None) -> None:
    out.line()
    running = keep or crew is None
    first = "ops status" if running else "ops up              # the same platform, to play with (make up)"
    out.line("next: " + first)
    out.line(f"      ops show {killed:<10} # the whole story of a deployment" if running
             else "      ops status          # while it runs: what works, waits and fails")  # fmt: skip
    out.line("      ops deploy hello v1 --to demo")
    if keep and crew is not None and crew.flower_port is not None:
        flower = foreman.read_env(stack).get("FLOWER_BASIC_AUTH", "").partition(":")
        out.line(f"Flower: http://127.0.0.1:{crew.flower_port}  user {flower[0]}  password {flower[2]}")


def _stay(crew: foreman.Foreman) -> None:
    out.note("everything stays up; Ctrl-C stops it")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            crew.look()
            time.sleep(0.5)


def _workers() -> int:
    with get_db_session() as session:
        return StatsRepository(session).workers_of("deployments")


def _until(is_so: Callable[[], bool], what: str, crew: foreman.Foreman | None) -> None:
    end = time.monotonic() + STEP_SECONDS
    while not is_so():
        if time.monotonic() > end:
            raise Unavailable(f"{what} did not come up", hint="the logs are in .ops/log")
        if crew is not None:
            crew.look()
        time.sleep(0.1)


def _ask(stage: Stage) -> str:
    """What the application says on its public port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{stage.port}/", timeout=3) as answer:
            return str(answer.read(200).decode().strip())
    except OSError as error:
        return f"nothing ({error})"


def _stop_servers(stage: Stage) -> None:
    """End the servers that deployments started: they outlive the platform, as they should, but not the demo."""
    for name in ("serving.pid", "candidate.pid"):
        path = stage.home / name
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            if b"server.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
        path.unlink(missing_ok=True)


def _two_free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
