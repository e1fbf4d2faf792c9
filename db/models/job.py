"""The ledger: one row per task that must not be lost. Written by the functions of the database only."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Float, Identity, Index, SmallInteger, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, JsonObject, Timestamp, one_of
from db.states import JobState, Outcome

_QUEUED = text("state = 'queued'")


class Job(Base):
    """A durable task. The row is the truth; a message in the broker is a doorbell that carries its id."""

    __tablename__ = "jobs"

    # What is to be done: facts.
    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    task: Mapped[str]
    queue: Mapped[str]
    args: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]")
    kwargs: Mapped[JsonObject]
    context: Mapped[JsonObject]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="5")
    idempotent: Mapped[bool] = mapped_column(server_default="false")
    unique_key: Mapped[str | None]
    unique_while: Mapped[str] = mapped_column(server_default="live")
    lock_key: Mapped[str | None]
    max_attempts: Mapped[int] = mapped_column(server_default="3")
    max_rescues: Mapped[int] = mapped_column(server_default="2")
    timeout_seconds: Mapped[int] = mapped_column(server_default="3600")
    lease_seconds: Mapped[float] = mapped_column(Float, server_default="9")
    backoff_seconds: Mapped[float] = mapped_column(Float, server_default="2")
    created_at: Mapped[CreatedAt]
    run_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
    expires_at: Mapped[Timestamp | None]

    # Where it stands.
    state: Mapped[JobState] = mapped_column(server_default=JobState.QUEUED.value)
    outcome: Mapped[Outcome | None]
    attempt: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    rescues: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]
    result: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    cancel_requested_at: Mapped[Timestamp | None]
    started_at: Mapped[Timestamp | None]
    began_at: Mapped[Timestamp | None]
    deadline_at: Mapped[Timestamp | None]
    finished_at: Mapped[Timestamp | None]

    # Who holds it.
    worker: Mapped[str | None]
    worker_host: Mapped[str | None]
    holders: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    fence: Mapped[int | None] = mapped_column(BigInteger)
    lease_token: Mapped[UUID | None]
    done_token: Mapped[UUID | None]

    # Bells and leases: no facts, no audit, no index on the lease.
    ring_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())
    rings: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[Timestamp | None]
    suspect_at: Mapped[Timestamp | None]

    __table_args__ = (
        one_of("state", JobState),
        one_of("outcome", Outcome),
        CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
        CheckConstraint("unique_while IN ('queued', 'live')", name="unique_while"),
        CheckConstraint("max_attempts >= 1 AND max_rescues >= 0", name="attempts"),
        CheckConstraint(
            "timeout_seconds > 0 AND lease_seconds BETWEEN 1 AND 86400 AND backoff_seconds BETWEEN 0 AND 86400",
            name="seconds",
        ),
        # What every broker takes: one doorbell that it refuses holds up the others.
        CheckConstraint(
            "octet_length(task) BETWEEN 1 AND 255 AND octet_length(queue) BETWEEN 1 AND 255 AND queue NOT LIKE 'amq.%'",
            name="names",
        ),
        CheckConstraint("jsonb_typeof(args) = 'array' AND jsonb_typeof(kwargs) = 'object'", name="arguments"),
        # Python has no other years, and nobody could list jobs any more.
        CheckConstraint(
            " AND ".join(
                f"{column} BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00'"
                for column in ("run_at", "ring_at", "expires_at")
            ),
            name="times",
        ),
        # What stands there is written into the trail at every move: were it refused there, neither the job nor the
        # rescue of others could move.
        CheckConstraint(
            "jsonb_typeof(context) = 'object' AND length(context->>'actor') <= 200 AND (context->>'actor_type') IN"
            " ('user', 'system', 'worker', 'beat', 'database') AND (context->>'actor_id')::bigint > 0"
            " AND family((context->>'ip_address')::inet) > 0",
            name="context",
        ),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("state <> 'running' OR lease_token IS NOT NULL", name="token"),
        CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished_at"
        ),
        CheckConstraint("(state = 'succeeded') = (outcome IS NOT NULL AND outcome = 'ok')", name="ok"),
        CheckConstraint(
            "state <> 'failed' OR (outcome IN ('failed', 'timeout', 'lost', 'interrupted') AND error IS NOT NULL)",
            name="failed",
        ),
        CheckConstraint("state <> 'cancelled' OR outcome IN ('cancelled', 'expired')", name="cancelled"),
        Index("uq_jobs_lock_key_running", "lock_key", unique=True, postgresql_where=text("state = 'running'")),
        Index(
            "uq_jobs_unique_key_live",
            "unique_key",
            unique=True,
            postgresql_where=text("state IN ('queued', 'running') AND unique_while = 'live'"),
        ),
        Index(
            "uq_jobs_unique_key_queued",
            "unique_key",
            unique=True,
            # A job that waits to be tried again must always be able to wait, whoever waits already.
            postgresql_where=text("state = 'queued' AND unique_while = 'queued' AND attempt = 0"),
        ),
        # Depth and age of each queue, for those who watch a backlog of any size.
        Index("ix_jobs_due", "queue", "run_at", postgresql_where=_QUEUED),
        Index("ix_jobs_ring", "queue", "priority", "ring_at", postgresql_where=_QUEUED),
        Index(
            "ix_jobs_waiters",
            "lock_key",
            "queue",
            "priority",
            "seq",
            postgresql_where=text("state = 'queued' AND lock_key IS NOT NULL"),
        ),
        Index(
            "ix_jobs_expires",
            "expires_at",
            postgresql_where=text("state = 'queued' AND expires_at IS NOT NULL"),
        ),
        Index("ix_jobs_running", "id", postgresql_where=text("state = 'running'")),
        # Lists: newest first, all or by state or by task.
        Index("ix_jobs_seq", "seq"),
        Index("ix_jobs_state", "state", "seq"),
        Index("ix_jobs_task", "task", "seq"),
        # Retention.
        Index("ix_jobs_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        {"postgresql_with": {"fillfactor": "70"}},
    )
