"""Watching a deployment: its log as it comes, why it waits, how it ended, and what to type next."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import typer

from db.connection import get_db_session
from db.errors import DatabaseUnavailable, NotFound
from db.models import Deployment, DeploymentLog
from db.repositories import DeploymentLogRepository, DeploymentRepository
from db.services import rollouts, waiting
from db.states import DeploymentStatus
from worker.cli.deployment import remark
from worker.cli.output import duration, out, safe

POLL_SECONDS = 0.3
EXIT_CODES = {
    DeploymentStatus.SUCCESS: 0,
    DeploymentStatus.ROLLED_BACK: 0,
    DeploymentStatus.FAILED: 1,
    DeploymentStatus.ERROR: 3,
    DeploymentStatus.CANCELLED: 4,
}
TIMED_OUT = 124


@dataclass
class Look:
    """One look at a deployment: what is new since the one before."""

    status: DeploymentStatus
    error: str | None
    took: float | None
    waits: str | None
    chunks: list[DeploymentLog] = field(default_factory=list)
    remark: str | None = None


def look(key: int, cursor: int) -> Look:
    """Raises NotFound, DatabaseUnavailable."""
    with get_db_session() as session:
        deployment = DeploymentRepository(session).get_with_relations(key)
        if deployment is None:
            raise NotFound(f"there is no deployment {key}", hint="ops deployment list")
        # After the status: what was printed before the end is there, then.
        chunks = list(DeploymentLogRepository(session).after(key, cursor))
        waits = waiting.why(session, deployment.job) if deployment.job else None
        return Look(
            deployment.status, deployment.error_message, _took(deployment), waits, chunks, remark(deployment)
        )  # fmt: skip


def watch(key: int, timeout: float | None = None, since_id: int = 0) -> int:
    """Follow until the end, what is printed after a piece; answers the exit code. Ctrl-C asks whether to cancel."""
    end = time.monotonic() + timeout if timeout is not None else None
    follower = Follower(key, since_id)
    while True:
        try:
            code = follower.step()
            if code is not None:
                return code
            if end is not None and time.monotonic() > end:
                out.note(f"still {follower.status}; it goes on without us: ops deployment logs -f {key}")
                return TIMED_OUT
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if not _ask_to_cancel(key):
                out.note(f"it goes on without us: ops deployment logs -f {key}")
                return TIMED_OUT


def print_logs(key: int, *, follow: bool, since_id: int = 0, timestamps: bool = False) -> None:
    """Everything printed after a piece (0: from the start), so far or until the end; why it waits and how it ended
    beside it, on stderr. A database that goes away meanwhile is waited for: nothing is shown twice, and nothing is left
    out."""
    cursor, away, waits = since_id, False, None
    try:
        while True:
            try:
                seen = look(key, cursor)
            except DatabaseUnavailable:
                if not follow:
                    raise
                if not away:
                    out.note("the database does not answer; this goes on when it is back")
                away = True
                time.sleep(POLL_SECONDS)
                continue
            away = False
            for chunk in seen.chunks:
                cursor = chunk.id
                show_chunk(key, chunk, timestamps=timestamps)
            if seen.chunks:
                continue
            if not follow:
                return
            if seen.status.is_final:
                out.note(_end_of(key, seen))
                return
            if seen.waits is not None and _gist(seen.waits) != waits:
                waits = _gist(seen.waits)
                out.note(f"waits: {seen.waits}")
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        out.note(f"go on from here: ops deployment logs -f {key} --since-id {cursor}")
        raise


class Follower:
    """Prints what is new at every step."""

    def __init__(self, key: int, since_id: int) -> None:
        self.key = key
        self.cursor = since_id
        self.status: DeploymentStatus | None = None
        self._waits: str | None = None
        self._away = False

    def step(self) -> int | None:
        """One look; the exit code once the deployment has ended and all of its output is shown."""
        try:
            seen = look(self.key, self.cursor)
        except DatabaseUnavailable:
            if not self._away:
                out.note("the database does not answer; the deployment goes on, and so do we when it is back")
            self._away = True
            return None
        self._away = False
        if seen.status != self.status:
            self.status = seen.status
            self._say_status(seen)
        if seen.waits is not None and _gist(seen.waits) != self._waits:
            self._waits = _gist(seen.waits)
            out.note(f"waits: {seen.waits}")
        for chunk in seen.chunks:
            self.cursor = chunk.id
            show_chunk(self.key, chunk)
        if seen.chunks or not seen.status.is_final:
            return None
        self._say_end(seen)
        return EXIT_CODES[seen.status]

    def _say_status(self, seen: Look) -> None:
        if out.json:
            out.record({"event": "status", "id": self.key, "status": seen.status})
        elif seen.status is DeploymentStatus.RUNNING:
            out.note("running")

    def _say_end(self, seen: Look) -> None:
        if out.json:
            code = EXIT_CODES[seen.status]
            record = {"event": "end", "id": self.key, "status": seen.status, "error": seen.error, "exit_code": code}
            out.record(record)
            return
        style = "bold green" if seen.status is DeploymentStatus.SUCCESS else "bold red"
        out.line(_end_of(self.key, seen), style=style)
        for line in next_steps(self.key, seen.status):
            out.line(line)


def next_steps(key: int, status: DeploymentStatus) -> list[str]:
    """What to type next."""
    if status in (DeploymentStatus.SUCCESS, DeploymentStatus.ROLLED_BACK):
        return [f"next: ops show {key}"]
    lines = [f"next: ops show {key}", f"      ops deployment retry {key}"]
    with get_db_session() as session:
        if rollouts.list_(session, deployment_id=key):
            lines = [f"next: ops deployment show {key}", f"      ops deployment retry {key} --failed-hosts"]
        deployment = DeploymentRepository(session).get_with_relations(key)
        assert deployment is not None
        good = DeploymentRepository(session).latest(
            deployment.application_id, deployment.infrastructure_id, DeploymentStatus.SUCCESS
        )
        if good is not None and good.version != deployment.version:
            names = f"{deployment.application.name} --to {deployment.infrastructure.name}"
            lines.append(f"      ops rollback {names}   (back to {good.version})")
    return lines


def show_chunk(key: int, chunk: DeploymentLog, *, timestamps: bool = False) -> None:
    """A piece of output: to stdout as it was printed; with `--json` one object a piece. With timestamps each line
    begins with when its piece was written, in UTC."""
    if out.json:
        record: dict[str, Any] = {"event": "log", "id": key, "cursor": chunk.id, "at": chunk.at}
        out.record(record | {"attempt": chunk.attempt, "stream": chunk.stream, "text": chunk.content})
    elif timestamps:
        at = chunk.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mark = {"platform": "# ", "stderr": "! "}.get(chunk.stream, "")
        out.raw("".join(f"{at} {mark}{line}\n" for line in chunk.content.splitlines()))
    elif chunk.stream == "platform":
        for line in chunk.content.splitlines():
            out.note(f"# {safe(line)}")
    elif chunk.stream == "stderr":
        sys.stdout.flush()
        sys.stderr.write(safe(chunk.content, colours=sys.stderr.isatty()))
        sys.stderr.flush()
    else:
        out.raw(chunk.content)


def _ask_to_cancel(key: int) -> bool:
    """On a terminal: ask. True when the watching goes on."""
    from db.errors import Conflict
    from db.services import deployments
    from worker.cli import acting

    if not sys.stdin.isatty():
        return False
    try:
        if not typer.confirm(f"\nCancel deployment {key}?", err=True):
            return False
        with contextlib.suppress(Conflict), acting.session(action="ops deploy, Ctrl-C") as (session, user):
            deployments.cancel(session, deployment_id=key, reason="Ctrl-C", actor=user)
    except (KeyboardInterrupt, typer.Abort):
        return False
    return True


def _end_of(key: int, seen: Look) -> str:
    took = f" after {duration(seen.took)}" if seen.took is not None else ""
    why = f": {said}" if (said := seen.error or seen.remark) else ""
    return f"deployment {key}: {seen.status}{took}{why}"


def _took(deployment: Deployment) -> float | None:
    if deployment.started_at is None or deployment.finished_at is None:
        return None
    return (deployment.finished_at - deployment.started_at).total_seconds()


def _gist(waits: str) -> str:
    """Without what changes every second."""
    return waits.partition(", held")[0]
