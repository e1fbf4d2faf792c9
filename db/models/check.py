"""What is looked at, where it stands, and what was seen."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.models.application import Application
from db.models.base import Base, BigInt, CreatedAt, JsonObject, Key, Timestamp, UpdatedAt, Versioned, one_of
from db.models.infrastructure import Infrastructure
from db.models.user import User
from db.states import CheckKind, CheckState, CheckStatus, Severity


class MonitoringCheck(Versioned, Base):
    """What is looked at, how often, and what is made of what is seen. ``config``: as :mod:`db.probes` has it; it opens
    the owner's secrets. ``ping_token``: a heartbeat's; who knows it may report. Where a check stands is in its row of
    ``check_states``."""

    __tablename__ = "monitoring_checks"

    id: Mapped[Key]
    name: Mapped[str]
    kind: Mapped[CheckKind]
    config: Mapped[JsonObject]
    interval_seconds: Mapped[BigInt] = mapped_column(server_default="60")
    timeout_seconds: Mapped[float] = mapped_column(Float, server_default="5")
    failure_threshold: Mapped[BigInt] = mapped_column(server_default="3")
    success_threshold: Mapped[BigInt] = mapped_column(server_default="2")
    retry_seconds: Mapped[BigInt | None]
    severity: Mapped[Severity] = mapped_column(server_default=Severity.HIGH.value)
    labels: Mapped[JsonObject]
    public: Mapped[bool] = mapped_column(server_default="false")
    paused_at: Mapped[Timestamp | None]
    application_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Application.id, ondelete="SET NULL"))
    infrastructure_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Infrastructure.id, ondelete="SET NULL"))
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey(User.id, ondelete="RESTRICT"))
    ping_token: Mapped[UUID | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    standing: Mapped[CheckStanding] = relationship(lazy="raise", viewonly=True, uselist=False)

    __table_args__ = (
        one_of("kind", CheckKind),
        one_of("severity", Severity),
        CheckConstraint("jsonb_typeof(config) = 'object' AND jsonb_typeof(labels) = 'object'", name="objects"),
        CheckConstraint(
            "interval_seconds BETWEEN 5 AND 86400 AND timeout_seconds BETWEEN 0.1 AND 60 "
            "AND retry_seconds BETWEEN 1 AND 86400",
            name="seconds",
        ),
        CheckConstraint(
            "failure_threshold BETWEEN 1 AND 100 AND success_threshold BETWEEN 1 AND 100", name="thresholds"
        ),
        CheckConstraint("(kind = 'heartbeat') = (ping_token IS NOT NULL)", name="ping_token"),
        Index("uq_monitoring_checks_name", text("lower(name)"), unique=True),
        Index("uq_monitoring_checks_ping_token", "ping_token", unique=True),
        Index("ix_monitoring_checks_application_id", "application_id", "id"),
        Index("ix_monitoring_checks_infrastructure_id", "infrastructure_id", "id"),
        Index("ix_monitoring_checks_owner_id", "owner_id", "id"),
    )


class CheckStanding(Base):
    """Where a check stands, one row each: its state with the streaks that it follows from (:mod:`db.checkstates`), when
    it runs next, and the run in flight.

    ``since_at``: since when the state holds. ``next_run_at``: when it is due, NULL while paused; while a run is in
    flight, when that is given up. ``scheduled_at`` and ``batch_id``: the run in flight; a result that names another
    changes nothing. ``blind_at``: since when no run could see anything. ``last_*``: the newest run.
    ``beat_since_at``: since when a heartbeat is expected to report, or, later than ``beat_at``, since when it can
    again; ``beat_at``, ``beat_failed``, ``beat_started_at``: what it has reported.
    """

    __tablename__ = "check_states"

    check_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey(MonitoringCheck.id, ondelete="CASCADE"), primary_key=True
    )
    state: Mapped[CheckState] = mapped_column(server_default=CheckState.UNKNOWN.value)
    since_at: Mapped[CreatedAt]
    seen: Mapped[CheckState | None]
    downs: Mapped[BigInt] = mapped_column(server_default="0")
    bads: Mapped[BigInt] = mapped_column(server_default="0")
    goods: Mapped[BigInt] = mapped_column(server_default="0")
    betters: Mapped[BigInt] = mapped_column(server_default="0")
    blinds: Mapped[BigInt] = mapped_column(server_default="0")
    blind_at: Mapped[Timestamp | None]
    changes: Mapped[BigInt] = mapped_column(server_default="0")
    is_flapping: Mapped[bool] = mapped_column(server_default="false")
    next_run_at: Mapped[Timestamp | None]
    scheduled_at: Mapped[Timestamp | None]
    batch_id: Mapped[UUID | None]
    last_run_at: Mapped[Timestamp | None]
    last_status: Mapped[CheckStatus | None]
    last_latency_seconds: Mapped[float | None] = mapped_column(REAL)
    last_message: Mapped[str | None]
    last_facts: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    beat_since_at: Mapped[CreatedAt]
    beat_at: Mapped[Timestamp | None]
    beat_failed: Mapped[bool] = mapped_column(server_default="false")
    beat_started_at: Mapped[Timestamp | None]

    __table_args__ = (
        one_of("state", CheckState),
        CheckConstraint("seen IN ('up', 'degraded', 'down')", name="seen"),
        one_of("last_status", CheckStatus),
        CheckConstraint("(state = 'paused') = (next_run_at IS NULL)", name="paused"),
        CheckConstraint("(scheduled_at IS NULL) = (batch_id IS NULL)", name="in_flight"),
        CheckConstraint("(blinds = 0) = (blind_at IS NULL)", name="blind_at"),
        Index("ix_check_states_next_run_at", "next_run_at"),
        Index("ix_check_states_state", "state", "check_id", postgresql_where=text("state IN ('down', 'degraded')")),
        Index("ix_check_states_blind_at", "blind_at", postgresql_where=text("blind_at IS NOT NULL")),
        # An index on the due time makes updates move rows; half a page is kept for them.
        {"postgresql_with": {"fillfactor": 50}},
    )


class CheckResult(Base):
    """What one run has seen; one partition per day. Without a foreign key: rows of a removed check go with their day,
    and a day is dropped without a lock on the checks."""

    __tablename__ = "check_results"

    check_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    status: Mapped[CheckStatus]
    latency_seconds: Mapped[float | None] = mapped_column(REAL)
    message: Mapped[str | None]
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    __table_args__ = (
        one_of("status", CheckStatus),
        Index("ix_check_results_at", "at", postgresql_using="brin"),
        {"postgresql_partition_by": "RANGE (at)"},
    )


SPANS = ("hour", "day")


class CheckRollup(Base):
    """All runs of a check in one hour or UTC day. ``count``: those that saw something; ``histogram``: how many took how
    long, in the buckets of :mod:`db.histograms`, which add up."""

    __tablename__ = "check_rollups"

    check_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey(MonitoringCheck.id, ondelete="CASCADE"), primary_key=True
    )
    span: Mapped[str] = mapped_column(Text, primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    count: Mapped[BigInt]
    downs: Mapped[BigInt]
    degraded: Mapped[BigInt]
    unknowns: Mapped[BigInt]
    missed: Mapped[BigInt]
    histogram: Mapped[list[int]] = mapped_column(ARRAY(Integer))

    __table_args__ = (
        CheckConstraint(f"span IN {SPANS}", name="span"),
        CheckConstraint(
            "count >= downs + degraded AND least(count, downs, degraded, unknowns, missed) >= 0", name="counts"
        ),
        Index("ix_check_rollups_starts_at", "span", "starts_at"),
    )


class CheckInterval(Base):
    """A time during which a check stood in one state. The open one has no end; UNKNOWN stands for every time at which
    the platform could not know: before the first run, without a view of the target, or away itself."""

    __tablename__ = "check_intervals"

    id: Mapped[Key]
    check_id: Mapped[BigInt] = mapped_column(ForeignKey(MonitoringCheck.id, ondelete="CASCADE"))
    state: Mapped[CheckState]
    started_at: Mapped[Timestamp]
    ended_at: Mapped[Timestamp | None]

    __table_args__ = (
        one_of("state", CheckState),
        CheckConstraint("ended_at >= started_at", name="ended_at"),
        Index("uq_check_intervals_open", "check_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("ix_check_intervals_check_id", "check_id", "started_at"),
        Index("ix_check_intervals_ended_at", "ended_at"),
    )
