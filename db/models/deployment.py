"""One version put on one place, and what it printed."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.models.application import Application
from db.models.base import Base, BigInt, CreatedAt, Key, Timestamp, UpdatedAt, one_of
from db.models.infrastructure import Infrastructure
from db.models.job import Job
from db.models.user import User
from db.states import DeploymentStatus


class Deployment(Base):
    """Puts a version of an application on an infrastructure. Its status follows its job."""

    __tablename__ = "deployments"

    id: Mapped[Key]
    user_id: Mapped[BigInt] = mapped_column(ForeignKey(User.id, ondelete="RESTRICT"))
    application_id: Mapped[BigInt] = mapped_column(ForeignKey(Application.id, ondelete="RESTRICT"))
    infrastructure_id: Mapped[BigInt] = mapped_column(ForeignKey(Infrastructure.id, ondelete="RESTRICT"))
    version: Mapped[str]
    status: Mapped[DeploymentStatus] = mapped_column(server_default=DeploymentStatus.PENDING.value)
    # The job's row may be written after this one in the same transaction: enqueue goes last.
    job_id: Mapped[UUID | None] = mapped_column(
        ForeignKey(Job.id, ondelete="SET NULL", deferrable=True, initially="DEFERRED")
    )
    rollback_deployment_id: Mapped[BigInt | None] = mapped_column(ForeignKey("deployments.id", ondelete="SET NULL"))
    # What it is to do, as :class:`db.frozen.Frozen`, loaded where it is asked for; None: asked for by an older release.
    frozen: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True), deferred=True, deferred_raiseload=True
    )
    digest: Mapped[str | None]
    # Of the version's content, where it has any: said with the request, or found by the first attempt.
    release_digest: Mapped[str | None]
    error_message: Mapped[str | None]
    started_at: Mapped[Timestamp | None]
    finished_at: Mapped[Timestamp | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped[User] = relationship(back_populates="deployments", lazy="raise")
    application: Mapped[Application] = relationship(lazy="raise")
    infrastructure: Mapped[Infrastructure] = relationship(lazy="raise")
    job: Mapped[Job | None] = relationship(lazy="raise")

    __table_args__ = (
        one_of("status", DeploymentStatus),
        CheckConstraint("length(version) BETWEEN 1 AND 200", name="version_length"),
        CheckConstraint("(status IN ('pending', 'running')) = (finished_at IS NULL)", name="finished_at"),
        CheckConstraint("(status IN ('failed', 'error')) <= (error_message IS NOT NULL)", name="error_message"),
        CheckConstraint("(frozen IS NULL) = (digest IS NULL)", name="frozen"),
        CheckConstraint("release_digest ~ '^(sha256|git):[0-9a-f]{40,64}$'", name="release_digest"),
        CheckConstraint("rollback_deployment_id <> id", name="rollback_deployment_id"),
        # What the lists ask for: newest first, by user, application, infrastructure, status.
        Index("ix_deployments_user_id", "user_id", "id"),
        Index("ix_deployments_user_id_status", "user_id", "status", "id"),
        Index("ix_deployments_application_id", "application_id", "id"),
        Index("ix_deployments_application_id_infrastructure_id", "application_id", "infrastructure_id", "id"),
        Index("ix_deployments_infrastructure_id", "infrastructure_id", "id"),
        Index("ix_deployments_status", "status", "id"),
        Index("uq_deployments_job_id", "job_id", unique=True),
        Index(
            "ix_deployments_rollback_deployment_id",
            "rollback_deployment_id",
            postgresql_where=text("rollback_deployment_id IS NOT NULL"),
        ),
    )


class DeploymentLog(Base):
    """A chunk of output: whole lines, in the order they were printed, secrets masked."""

    __tablename__ = "deployment_logs"

    id: Mapped[Key]
    deployment_id: Mapped[BigInt] = mapped_column(ForeignKey(Deployment.id, ondelete="CASCADE"))
    attempt: Mapped[int]
    stream: Mapped[str]
    content: Mapped[str]
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())

    __table_args__ = (
        CheckConstraint("stream IN ('stdout', 'stderr', 'platform')", name="stream"),
        Index("ix_deployment_logs_deployment_id", "deployment_id", "id"),
    )
