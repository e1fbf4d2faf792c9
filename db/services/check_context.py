"""What some kinds of checks need to know that only the database knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import CheckStanding, Job, MonitoringCheck, Process
from db.states import CheckKind, JobState

#: A worker that has not said so for longer is not alive.
ALIVE_SECONDS = 20


def gather(session: Session, rows: Sequence[tuple[CheckStanding, MonitoringCheck]]) -> dict[int, Mapping[str, Any]]:
    """By check; nothing for kinds that need nothing."""
    now = session.scalar(select(func.statement_timestamp()))
    found: dict[int, Mapping[str, Any]] = {}
    queues: dict[str, Mapping[str, Any]] = {}
    for standing, check in rows:
        if check.kind is CheckKind.HEARTBEAT:
            found[check.id] = {
                "now": now,
                "since": standing.beat_since_at,
                "beat_at": standing.beat_at,
                "failed": standing.beat_failed,
                "started_at": standing.beat_started_at,
            }
        elif check.kind is CheckKind.CELERY:
            queue = str(check.config.get("queue"))
            if queue not in queues:
                queues[queue] = _queue(session, queue)
            found[check.id] = queues[queue]
    return found


def _queue(session: Session, queue: str) -> Mapping[str, Any]:
    alive = func.statement_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, ALIVE_SECONDS)
    workers = session.scalar(
        select(func.count())
        .select_from(Process)
        .where(Process.kind == "worker", Process.seen_at > alive, Process.info["queues"].contains([queue]))
    )
    due, oldest = session.execute(
        select(func.count(), func.extract("epoch", func.statement_timestamp() - func.min(Job.run_at))).where(
            Job.queue == queue, Job.state == JobState.QUEUED, Job.run_at <= func.statement_timestamp()
        )
    ).one()
    return {"workers": workers or 0, "due": due, "age_seconds": float(oldest or 0)}
