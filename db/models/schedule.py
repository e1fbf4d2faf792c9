"""What happens by itself, when, and what became of each time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Index, SmallInteger, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db import recurrence
from db.models.application import Application
from db.models.base import Base, BigInt, CreatedAt, JsonObject, Key, Timestamp, UpdatedAt, Versioned, one_of
from db.models.deployment import Deployment
from db.models.infrastructure import Infrastructure
from db.models.user import User
from db.states import CatchUp, Overlap, RunOutcome, ScheduleKind

_BOUNDS = "BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00'"


class Schedule(Versioned, Base):
    """Enqueues a deployment or a durable task, at times of a cron expression, every so often, or once.

    ``next_run_at`` is None while it is paused and when no time comes any more. ``user_id`` is whose rights it acts
    with; they are checked each time.
    """

    __tablename__ = "schedules"

    id: Mapped[Key]
    name: Mapped[str]

    # When.
    kind: Mapped[ScheduleKind]
    cron: Mapped[str | None]
    timezone: Mapped[str] = mapped_column(server_default="UTC")
    every_seconds: Mapped[BigInt | None]
    #: An interval is counted from here.
    anchor_at: Mapped[Timestamp]
    once_at: Mapped[Timestamp | None]

    # What: a deployment, or a durable task.
    application_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Application.id, ondelete="RESTRICT"))
    infrastructure_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Infrastructure.id, ondelete="RESTRICT"))
    version: Mapped[str | None]
    task: Mapped[str | None]
    queue: Mapped[str | None]
    args: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]")
    kwargs: Mapped[JsonObject]
    idempotent: Mapped[bool] = mapped_column(server_default="false")
    max_attempts: Mapped[BigInt] = mapped_column(server_default="3")
    timeout_seconds: Mapped[BigInt] = mapped_column(server_default="3600")
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="5")

    # How.
    overlap: Mapped[Overlap] = mapped_column(server_default=Overlap.SKIP.value)
    catch_up: Mapped[CatchUp] = mapped_column(server_default=CatchUp.NONE.value)
    pause_on_failure: Mapped[BigInt | None]
    user_id: Mapped[BigInt] = mapped_column(ForeignKey(User.id, ondelete="RESTRICT"))

    # Where it stands.
    paused_at: Mapped[Timestamp | None]
    paused_because: Mapped[str | None]
    #: Failures before this count no more.
    resumed_at: Mapped[Timestamp | None]
    next_run_at: Mapped[Timestamp | None]
    last_fired_at: Mapped[Timestamp | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped[User] = relationship(lazy="raise")
    application: Mapped[Application | None] = relationship(lazy="raise")
    infrastructure: Mapped[Infrastructure | None] = relationship(lazy="raise")

    __table_args__ = (
        one_of("kind", ScheduleKind),
        one_of("overlap", Overlap),
        one_of("catch_up", CatchUp),
        CheckConstraint(
            "(kind = 'cron') = (cron IS NOT NULL) AND (kind = 'interval') = (every_seconds IS NOT NULL)"
            " AND (kind = 'once') = (once_at IS NOT NULL)",
            name="timing",
        ),
        CheckConstraint(
            "CASE WHEN task IS NULL THEN queue IS NULL AND num_nonnulls(application_id, infrastructure_id, version) = 3"
            " ELSE queue IS NOT NULL AND num_nonnulls(application_id, infrastructure_id, version) = 0 END",
            name="work",
        ),
        # What the ledger takes: one that it refuses would fail at each of its times.
        CheckConstraint(
            "octet_length(task) BETWEEN 1 AND 255 AND octet_length(queue) BETWEEN 1 AND 255 AND queue NOT LIKE 'amq.%'",
            name="names",
        ),
        CheckConstraint("jsonb_typeof(args) = 'array' AND jsonb_typeof(kwargs) = 'object'", name="arguments"),
        CheckConstraint("length(version) BETWEEN 1 AND 200", name="version_length"),
        CheckConstraint(
            "every_seconds BETWEEN 1 AND 31622400 AND timeout_seconds BETWEEN 1 AND 604800"
            " AND max_attempts BETWEEN 1 AND 100 AND priority BETWEEN 0 AND 9 AND pause_on_failure BETWEEN 1 AND 100",
            name="numbers",
        ),
        CheckConstraint(" AND ".join(f"{c} {_BOUNDS}" for c in ("anchor_at", "once_at", "next_run_at")), name="times"),
        CheckConstraint("(paused_at IS NULL) = (paused_because IS NULL)", name="paused_because"),
        CheckConstraint("paused_at IS NULL OR next_run_at IS NULL", name="paused_at"),
        Index("uq_schedules_name", text("lower(name)"), unique=True),
        Index("ix_schedules_next_run_at", "next_run_at", "id", postgresql_where=text("next_run_at IS NOT NULL")),
        Index("ix_schedules_user_id", "user_id", "id"),
        Index("ix_schedules_application_id", "application_id"),
        Index("ix_schedules_infrastructure_id", "infrastructure_id"),
        # Its times move at each of its runs.
        {"postgresql_with": {"fillfactor": "70"}},
    )

    @property
    def recurrence(self) -> recurrence.Recurrence:
        """Its times. Raises ValueError for an expression or a zone that this host cannot read."""
        if self.kind is ScheduleKind.CRON:
            return recurrence.cron(self.cron or "", recurrence.zone(self.timezone))
        if self.kind is ScheduleKind.INTERVAL:
            return recurrence.Interval(timedelta(seconds=self.every_seconds or 0), self.anchor_at)
        assert self.once_at is not None
        return recurrence.Once(self.once_at)


class ScheduleRun(Base):
    """What became of one time of a schedule. Each time has one row, whoever fires it."""

    __tablename__ = "schedule_runs"

    id: Mapped[Key]
    schedule_id: Mapped[BigInt] = mapped_column(ForeignKey(Schedule.id, ondelete="CASCADE"))
    #: The time it was for; ``fired_at`` is when that was decided.
    fire_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    fired_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
    #: Asked for by a person, beside the schedule's own times.
    by_hand: Mapped[bool] = mapped_column(server_default="false")
    outcome: Mapped[RunOutcome]
    reason: Mapped[str | None]
    # No foreign key: it names its job also when the job's own retention has passed.
    job_id: Mapped[UUID | None]
    deployment_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Deployment.id, ondelete="SET NULL"))

    __table_args__ = (
        one_of("outcome", RunOutcome),
        CheckConstraint("(outcome = 'enqueued') = (job_id IS NOT NULL)", name="job_id"),
        CheckConstraint("outcome = 'enqueued' OR reason IS NOT NULL", name="reason"),
        Index("uq_schedule_runs_schedule_id_fire_at", "schedule_id", "fire_at", unique=True),
        # What overlaps, and what failed in a row: times that passed by its own rules are no part of it.
        Index("ix_schedule_runs_tried", "schedule_id", "fire_at", postgresql_where=text("outcome <> 'skipped'")),
        Index("ix_schedule_runs_fired_at", "fired_at"),
        Index("ix_schedule_runs_deployment_id", "deployment_id", postgresql_where=text("deployment_id IS NOT NULL")),
    )
