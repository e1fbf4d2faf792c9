"""What is going on, in numbers: one statement each, served by an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.models import (
    AuditLog,
    CheckStanding,
    Deployment,
    Job,
    LedgerState,
    MonitoringAlert,
    MonitoringCheck,
    Process,
    Schedule,
    Tick,
)
from db.states import AlertStatus, CheckState, DeploymentStatus, JobState

#: A process that was not seen for so long is taken for dead.
ALIVE = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class Query:
    """A kind of statement since the server's statistics began; times in milliseconds."""

    text: str
    calls: int
    mean_ms: float
    total_ms: float
    rows: int


@dataclass(frozen=True, slots=True)
class AuditGrowth:
    """The trail: its size, about how many entries it has (the server's estimate), and how many came lately."""

    bytes: int
    entries: int
    lately: int


@dataclass(frozen=True, slots=True)
class FailedLogins:
    """Logins that failed lately: how many, of how many names and addresses, and how often somebody had to wait."""

    failed: int
    usernames: int
    addresses: int
    throttled: int


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
                Process.seen_at, Process.draining_at, (func.now() - Process.seen_at < ALIVE).label("alive"),
            )
            .where(Process.seen_at > func.now() - text("interval '1 hour'"))
            .order_by(Process.kind.desc(), Process.name, Process.started_at)
        )  # fmt: skip
        return self.session.execute(query).all()

    def workers_of(self, queue: str) -> int:
        """How many living workers serve a queue, and do not drain."""
        query = select(func.count()).where(
            Process.kind == "worker",
            Process.draining_at.is_(None),
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

    def firing(self, limit: int = 10) -> Sequence[MonitoringAlert]:
        """The newest alerts that fire."""
        query = select(MonitoringAlert).where(MonitoringAlert.status == AlertStatus.FIRING)
        return self.session.scalars(query.order_by(MonitoringAlert.id.desc()).limit(limit)).all()

    def checks(self) -> dict[str, int]:
        """How many checks are in each state that one is in."""
        query = select(CheckStanding.state, func.count()).group_by(CheckStanding.state).order_by(CheckStanding.state)
        return {state.value: count for state, count in self.session.execute(query)}

    def checks_down(self, limit: int = 10) -> Sequence[Any]:
        """Checks that are down or degraded, with their names; those of the longest standing first."""
        query = (
            select(MonitoringCheck.name, CheckStanding.state, CheckStanding.since_at, CheckStanding.last_message)
            .join(MonitoringCheck, MonitoringCheck.id == CheckStanding.check_id)
            .where(CheckStanding.state.in_((CheckState.DOWN, CheckState.DEGRADED)))
            .order_by(CheckStanding.state.desc(), CheckStanding.since_at, CheckStanding.check_id)
            .limit(limit)
        )
        return self.session.execute(query).all()

    def schedules_paused(self, limit: int = 10) -> Sequence[Any]:
        """Schedules that were paused for a reason: by their failures, or by somebody who named one; the newest
        first."""
        query = (
            select(Schedule.name, Schedule.paused_at, Schedule.paused_because)
            .where(Schedule.paused_at.is_not(None), Schedule.paused_because != "asked for")
            .order_by(Schedule.paused_at.desc())
            .limit(limit)
        )
        return self.session.execute(query).all()

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

    def slowest_queries(self, limit: int = 10) -> list[Query] | None:
        """What the database has spent most time on; None where the extension pg_stat_statements is not there, not
        loaded, or not ours to read."""
        home = self.session.scalar(
            text("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'pg_stat_statements'")
        )
        if home is None:
            return None
        query = text(
            f"""SELECT query, calls, mean_exec_time, total_exec_time, rows FROM {home}.pg_stat_statements
            WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            ORDER BY total_exec_time DESC LIMIT :limit"""  # noqa: S608 - quoted by the server
        )
        try:
            with self.session.begin_nested():
                return [Query(*row) for row in self.session.execute(query, {"limit": limit})]
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", "") in ("55000", "42501"):
                return None
            raise

    def audit_growth(self, lately: timedelta = timedelta(hours=1)) -> AuditGrowth:
        """How much the audit trail holds, and how fast it grows."""
        table = f"{AuditLog.__table__.schema}.{AuditLog.__tablename__}"
        size = self.session.execute(
            text(
                """SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0), coalesce(sum(greatest(reltuples, 0)), 0)
                FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = cast(:table AS regclass)"""
            ),
            {"table": table},
        ).one()
        fresh = self.session.scalar(select(func.count()).where(AuditLog.at > func.now() - lately))
        return AuditGrowth(int(size[0]), int(size[1]), fresh or 0)

    def failed_logins(self, lately: timedelta = timedelta(hours=1)) -> FailedLogins:
        """How many logins failed, and from where; many names from one address, or one name from many, is an attack."""
        failed, throttled = AuditLog.action == "user.login_failed", AuditLog.action == "user.login_throttled"
        query = select(
            func.count().filter(failed),
            func.count(func.distinct(AuditLog.details["username"].astext)).filter(failed),
            func.count(func.distinct(AuditLog.ip_address)).filter(failed),
            func.coalesce(func.sum(AuditLog.details["refused"].as_integer()).filter(throttled), 0),
        ).where(AuditLog.action.in_(("user.login_failed", "user.login_throttled")), AuditLog.at > func.now() - lately)
        return FailedLogins(*self.session.execute(query).one())
