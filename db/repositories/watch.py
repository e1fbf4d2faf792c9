"""What the rules look at: one statement each, read-only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Text, func, or_, select, text, type_coerce
from sqlalchemy.orm import Session, aliased

from db.models import (
    Application,
    AuditLog,
    Base,
    CheckResult,
    Deployment,
    Infrastructure,
    Job,
    Notification,
    NotificationChannel,
    Process,
)
from db.repositories.encryption import encrypted_tables
from db.repositories.stats import ALIVE
from db.states import JobState, NotificationState

#: Stored values that are opened to see whether they open, per column: the newest.
SAMPLE = 50


@dataclass(frozen=True, slots=True)
class Stored:
    """An encrypted value as it is stored."""

    label: str
    value: str


class WatchRepository:
    """Read-only."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def stuck_deployments(self) -> Sequence[Any]:
        """Deployments whose job is past its deadline, or due with nothing in its way: id, names, seconds, state."""
        holder = aliased(Job)
        blocked = (
            select(holder.id)
            .where(holder.lock_key == Job.lock_key, holder.state == JobState.RUNNING)
            .exists()
        )  # fmt: skip
        since = func.coalesce(Job.deadline_at, Job.run_at)
        seconds = func.extract("epoch", func.clock_timestamp() - since)
        query = (
            select(
                Deployment.id, Deployment.application_id, Deployment.infrastructure_id,
                Application.name.label("application"), Infrastructure.name.label("infrastructure"), Job.state,
                seconds.label("seconds"),
            )
            .join(Job, Job.id == Deployment.job_id)
            .join(Application, Application.id == Deployment.application_id)
            .join(Infrastructure, Infrastructure.id == Deployment.infrastructure_id)
            .where(since < func.now())
            .where(
                or_(
                    Job.state == JobState.RUNNING,
                    (Job.state == JobState.QUEUED) & ~blocked,
                )
            )
            .order_by(Deployment.id)
            .limit(500)
        )  # fmt: skip
        return self.session.execute(query).all()

    def queue_ages(self) -> Sequence[Any]:
        """Per queue the age in seconds of the oldest due job that no running one holds up."""
        holder = aliased(Job)
        blocked = select(holder.id).where(holder.lock_key == Job.lock_key, holder.state == JobState.RUNNING).exists()
        query = (
            select(
                Job.queue, func.extract("epoch", func.clock_timestamp() - func.min(Job.run_at)).label("seconds"),
                func.count().label("jobs"),
            )
            .where(Job.state == JobState.QUEUED, Job.run_at <= func.now(), ~blocked)
            .group_by(Job.queue)
            .order_by(Job.queue)
        )  # fmt: skip
        return self.session.execute(query).all()

    def queues_with_work(self) -> set[str]:
        """Queues in which something waits or runs."""
        query = select(Job.queue).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING))).distinct()
        return set(self.session.scalars(query))

    def workers(self) -> Sequence[Process]:
        """Workers that were seen in the last day; those that ended in order are gone."""
        return self.session.scalars(select(Process).where(Process.kind == "worker").order_by(Process.name)).all()

    def alive(self, kind: str) -> int:
        """How many processes of a kind live."""
        query = select(func.count()).where(Process.kind == kind, Process.seen_at > func.now() - ALIVE)
        return self.session.scalar(query) or 0

    def living_workers(self) -> Sequence[Process]:
        query = select(Process).where(Process.kind == "worker", Process.seen_at > func.now() - ALIVE)
        return self.session.scalars(query.order_by(Process.name)).all()

    def audit_entries(self, lately: timedelta) -> int:
        return self.session.scalar(select(func.count()).where(AuditLog.at > func.now() - lately)) or 0

    def partitions_ahead(self) -> tuple[int, int]:
        """Partitions for times to come: months of the audit trail, and days of what checks have seen."""
        query = text(
            """SELECT count(*) FILTER (WHERE i.inhparent = CAST(:trail AS regclass)
                AND right(c.relname, 7) COLLATE "C" > to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')),
              count(*) FILTER (WHERE i.inhparent = CAST(:results AS regclass)
                AND right(c.relname, 10) COLLATE "C" > to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM_DD'))
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"""
        )
        schema = AuditLog.__table__.schema
        names = {"trail": AuditLog.__tablename__, "results": CheckResult.__tablename__}
        months, days = self.session.execute(query, {key: f"{schema}.{name}" for key, name in names.items()}).one()
        return int(months), int(days)

    def connections(self) -> tuple[int, int]:
        """How many of the server's connections are in use, and how many there may be."""
        query = text(
            """SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
              current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"""
        )
        used, most = self.session.execute(query).one()
        return int(used), int(most)

    def slowest_statement(self) -> tuple[float, str] | None:
        """The seconds of the statement of this role that has run longest, and whose it is; None: none runs."""
        query = text(
            """SELECT extract(epoch FROM clock_timestamp() - query_start) AS seconds, application_name
            FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user
              AND state = 'active' AND pid <> pg_backend_pid() ORDER BY query_start LIMIT 1"""
        )
        found = self.session.execute(query).one_or_none()
        return None if found is None else (float(found[0]), str(found[1]))

    def sample_of_encrypted(self) -> list[Stored]:
        """The newest values of each encrypted column of ours."""
        found: list[Stored] = []
        for table in encrypted_tables([Base.metadata]):
            for name, column in table.columns.items():
                stored = type_coerce(column, Text())
                query = select(stored).where(stored.is_not(None)).order_by(*(key.desc() for key in table.key))
                label = table.label(name)
                found += [Stored(label, value) for value in self.session.scalars(query.limit(SAMPLE))]
        return found

    def broken_channels(self) -> Sequence[NotificationChannel]:
        query = select(NotificationChannel).where(NotificationChannel.is_broken).order_by(NotificationChannel.id)
        return self.session.scalars(query, execution_options={"populate_existing": True}).all()

    def late_notifications(self) -> Sequence[Any]:
        """Per channel: how many seconds the oldest message that a job tries to send waits for its end, and why."""
        query = (
            select(
                NotificationChannel.name,
                func.extract("epoch", func.clock_timestamp() - func.min(Notification.queued_at)).label("seconds"),
                func.max(Notification.error).label("error"),
            )
            .join(Notification, Notification.channel_id == NotificationChannel.id)
            .where(Notification.state == NotificationState.QUEUED)
            .group_by(NotificationChannel.name)
            .order_by(NotificationChannel.name)
        )
        return self.session.execute(query).all()
