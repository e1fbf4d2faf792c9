"""What is going on, in numbers: one statement each, served by an index."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.orm import Session

from db.models import Deployment, Job, LedgerState, MonitoringAlert, Process, Tick
from db.states import AlertStatus, DeploymentStatus, JobState

#: A process that was not seen for so long is taken for dead.
ALIVE = timedelta(seconds=20)


class StatsRepository:
    """Read-only."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def queues(self) -> Sequence[Any]:
        """Per queue: how many wait, how many of them are due, how many run, and the age of the oldest due one."""
        waiting = Job.state == JobState.QUEUED
        due = waiting & (Job.run_at <= func.now())
        query = (
            select(
                Job.queue,
                func.count().filter(waiting).label("queued"),
                func.count().filter(due).label("due"),
                func.count().filter(Job.state == JobState.RUNNING).label("running"),
                (func.now() - func.min(Job.run_at).filter(due)).label("oldest_due"),
            )
            .where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
            .group_by(Job.queue)
            .order_by(Job.queue)
        )
        return self.session.execute(query).all()

    def running(self, limit: int = 20) -> Sequence[Job]:
        """What runs, the longest first."""
        query = select(Job).where(Job.state == JobState.RUNNING).order_by(Job.started_at).limit(limit)
        return self.session.scalars(query).all()

    def ended_badly(self, limit: int = 5) -> Sequence[Deployment]:
        """The newest deployments that failed, or of which nobody can tell."""
        query = (
            select(Deployment)
            .where(Deployment.status.in_((DeploymentStatus.FAILED, DeploymentStatus.ERROR)))
            .where(Deployment.finished_at > func.now() - text("interval '1 day'"))
            .order_by(Deployment.id.desc())
            .limit(limit)
        )
        return self.session.scalars(query).all()

    def processes(self) -> Sequence[Any]:
        """Every process that said it lives in the last hour, and how long ago."""
        query = (
            select(
                Process.kind, Process.name, Process.host, Process.pid, Process.info, Process.started_at,
                Process.seen_at, (func.now() - Process.seen_at < ALIVE).label("alive"),
            )
            .where(Process.seen_at > func.now() - text("interval '1 hour'"))
            .order_by(Process.kind.desc(), Process.name, Process.started_at)
        )  # fmt: skip
        return self.session.execute(query).all()

    def workers_of(self, queue: str) -> int:
        """How many living workers serve a queue."""
        query = select(func.count()).where(
            Process.kind == "worker",
            Process.seen_at > func.now() - ALIVE,
            Process.info["queues"].contains([queue]),
        )
        return self.session.scalar(query) or 0

    def ledger_state(self) -> LedgerState:
        """Whether the ledger is paused, and why."""
        return self.session.scalars(select(LedgerState)).one()

    def ticks(self) -> Sequence[Tick]:
        return self.session.scalars(select(Tick).order_by(Tick.name)).all()

    def open_alerts(self) -> int:
        query = select(func.count()).where(MonitoringAlert.status != AlertStatus.RESOLVED)
        return self.session.scalar(query) or 0

    def holder_of(self, lock_key: str) -> Job | None:
        """The job that runs under a key."""
        return self.session.scalar(select(Job).where(Job.lock_key == lock_key, Job.state == JobState.RUNNING))

    def ahead_of(self, job: Job) -> int:
        """How many due jobs of its key and queue go before it."""
        query = select(func.count()).where(
            Job.lock_key == job.lock_key,
            Job.queue == job.queue,
            Job.state == JobState.QUEUED,
            Job.run_at <= func.now(),
            tuple_(Job.priority, Job.seq) < tuple_(job.priority, job.seq),
        )
        return self.session.scalar(query) or 0
