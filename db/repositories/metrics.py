"""The state of everything, for those who watch: one statement each, and none reads all jobs or all of the trail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from db.models import (
    AuditLog,
    CheckStanding,
    Job,
    LedgerState,
    MonitoringAlert,
    Notification,
    Process,
    Tick,
)
from db.repositories.audit_seals import AuditSealRepository
from db.repositories.stats import ALIVE
from db.states import AlertStatus, JobState, NotificationState

#: A snapshot takes milliseconds; whoever is in its way is not waited for.
STATEMENT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Trail:
    """The audit trail's size, about how many entries it has (the server's estimate), and how many months are ready."""

    bytes: int
    entries: int
    months_ahead: int


class MetricsRepository:
    """Read-only. Ages and durations in seconds."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._schema = AuditLog.__table__.schema or "public"

    def begin(self) -> None:
        """Begin the session's transaction: all statements on one snapshot, read only, bounded."""
        AuditSealRepository(self.session).begin(snapshot=True)
        self.session.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'"))

    def now(self) -> datetime:
        return self.session.execute(select(func.now())).scalar_one()

    def queued(self) -> Sequence[Any]:
        """Per queue: how many wait, how many of them are due, and the age of the oldest due one (0: none is)."""
        due = Job.run_at <= func.now()
        age = func.extract("epoch", func.now() - func.min(Job.run_at).filter(due))
        query = (
            select(
                Job.queue,
                func.count().label("queued"),
                func.count().filter(due).label("due"),
                func.coalesce(age, 0).label("oldest_due"),
            )
            .where(Job.state == JobState.QUEUED)
            .group_by(Job.queue)
        )
        return self.session.execute(query).all()

    def running(self) -> Sequence[Any]:
        """Per queue: how many run, of how many the lease has run out, and since when the longest runs."""
        query = (
            select(
                Job.queue,
                func.count().label("running"),
                func.count().filter(Job.lease_until < func.now()).label("overdue"),
                func.extract("epoch", func.now() - func.min(Job.started_at)).label("longest"),
            )
            .where(Job.state == JobState.RUNNING)
            .group_by(Job.queue)
        )
        return self.session.execute(query).all()

    def checks(self) -> Sequence[Any]:
        """How many checks stand in each state; of those ``due`` (and not under way), ``late`` by a minute and
        ``blind`` (their last run could see nothing); the age of the oldest due one."""
        waits = CheckStanding.scheduled_at.is_(None) & (CheckStanding.next_run_at <= func.now())
        query = select(
            CheckStanding.state,
            func.count().label("count"),
            func.count().filter(waits).label("due"),
            func.count()
            .filter(waits & (CheckStanding.next_run_at < func.now() - text("interval '1 min'")))
            .label("late"),
            func.count().filter(CheckStanding.blinds > 0).label("blind"),
            func.coalesce(
                func.extract("epoch", func.now() - func.min(CheckStanding.next_run_at).filter(waits)), 0
            ).label("oldest_due"),
        ).group_by(CheckStanding.state)
        return self.session.execute(query).all()

    def notifications(self) -> Sequence[Any]:
        """What is still to be told, by state, and the age of the oldest."""
        query = select(
            Notification.state,
            func.count().label("count"),
            func.extract("epoch", func.now() - func.min(Notification.created_at)).label("oldest"),
        ).where(Notification.state.in_((NotificationState.WAITING, NotificationState.QUEUED)))
        return self.session.execute(query.group_by(Notification.state)).all()

    def alerts(self) -> Sequence[Any]:
        """How many are open, by status and severity."""
        open_ = (AlertStatus.PENDING, AlertStatus.FIRING)
        query = select(MonitoringAlert.status, MonitoringAlert.severity, func.count().label("count")).where(
            MonitoringAlert.status.in_(open_)
        )
        return self.session.execute(query.group_by(MonitoringAlert.status, MonitoringAlert.severity)).all()

    def processes(self) -> Sequence[Any]:
        """Who said in the last hour that it lives."""
        query = select(
            Process.kind, Process.name, Process.info,
            (func.now() - Process.seen_at < ALIVE).label("alive"),
            func.extract("epoch", func.now() - Process.seen_at).label("seen_ago"),
        ).where(Process.seen_at > func.now() - text("interval '1 hour'"))  # fmt: skip
        return self.session.execute(query.order_by(Process.kind, Process.name, Process.seen_at)).all()

    def ticks(self) -> Sequence[Tick]:
        return self.session.scalars(select(Tick).order_by(Tick.name)).all()

    def paused(self) -> bool:
        return self.session.scalars(select(LedgerState.paused_at)).one() is not None

    def trail(self) -> Trail:
        row = self.session.execute(
            text(
                """SELECT coalesce(sum(pg_total_relation_size(i.inhrelid)), 0),
                  coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint,
                  count(*) FILTER (WHERE right(c.relname, 7) COLLATE "C" > to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'))
                FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = CAST(:trail AS regclass)"""
            ),
            {"trail": f"{self._schema}.audit_logs"},
        ).one()
        return Trail(int(row[0]), int(row[1]), int(row[2]))

    def connections(self) -> Sequence[Any]:
        """The server's connections to this database, by what they said they are for and whether they work."""
        return self.session.execute(
            text(
                """SELECT coalesce(nullif(application_name, ''), '-') AS application,
                  coalesce(state, 'hidden') AS state, count(*) AS count
                FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
                GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 50"""
            )
        ).all()

    def connection_limit(self) -> int:
        return int(
            self.session.scalar(
                text(
                    "SELECT current_setting('max_connections')::int"
                    " - current_setting('superuser_reserved_connections')::int"
                )
            )
            or 0
        )

    def database_bytes(self) -> int:
        return int(self.session.scalar(text("SELECT pg_database_size(current_database())")) or 0)
