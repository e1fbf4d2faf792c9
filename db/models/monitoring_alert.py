"""Something is wrong, and who knows of it."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.application import Application
from db.models.base import Base, BigInt, CreatedAt, JsonObject, Key, Timestamp, UpdatedAt, one_of
from db.models.deployment import Deployment
from db.models.infrastructure import Infrastructure
from db.models.user import User
from db.states import AlertEventKind, AlertStatus, Severity


class MonitoringAlert(Base):
    """An alert; at most one is open per fingerprint. Raised by beat jobs, nowhere else.

    ``episode`` tells one time that something was wrong from the next. ``started_at`` is when it began to be,
    ``cleared_at`` when it was seen to be over: what a person has resolved meanwhile is not raised again before that.
    ``settled_at``: whoever had to be told of its end will be. ``deployment_id`` is the deployment that it tells of, or
    the one that changed the thing shortly before.
    """

    __tablename__ = "monitoring_alerts"

    id: Mapped[Key]
    fingerprint: Mapped[str]
    alert_type: Mapped[str]
    severity: Mapped[Severity]
    status: Mapped[AlertStatus] = mapped_column(server_default=AlertStatus.FIRING.value)
    title: Mapped[str]
    message: Mapped[str | None]
    labels: Mapped[JsonObject]
    threshold_value: Mapped[float | None] = mapped_column(Float)
    current_value: Mapped[float | None] = mapped_column(Float)
    infrastructure_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Infrastructure.id, ondelete="SET NULL"))
    application_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Application.id, ondelete="SET NULL"))
    deployment_id: Mapped[BigInt | None] = mapped_column(ForeignKey(Deployment.id, ondelete="SET NULL"))
    episode: Mapped[str | None]
    started_at: Mapped[Timestamp | None]
    fired_at: Mapped[Timestamp | None]
    acknowledged_at: Mapped[Timestamp | None]
    acknowledged_by_id: Mapped[BigInt | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"))
    assigned_to_id: Mapped[BigInt | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"))
    resolved_at: Mapped[Timestamp | None]
    resolved_by_id: Mapped[BigInt | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"))
    cleared_at: Mapped[Timestamp | None]
    settled_at: Mapped[Timestamp | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        one_of("severity", Severity),
        one_of("status", AlertStatus),
        CheckConstraint("(status = 'resolved') = (resolved_at IS NOT NULL)", name="resolved_at"),
        CheckConstraint("status = 'pending' OR fired_at IS NOT NULL", name="fired_at"),
        Index(
            "uq_monitoring_alerts_open",
            "fingerprint",
            unique=True,
            postgresql_where=text("status <> 'resolved'"),
        ),
        Index("ix_monitoring_alerts_status", "status", "id"),
        Index("ix_monitoring_alerts_infrastructure_id", "infrastructure_id", "id"),
        Index("ix_monitoring_alerts_application_id", "application_id", "id"),
        Index("ix_monitoring_alerts_deployment_id", "deployment_id"),
        Index("ix_monitoring_alerts_acknowledged_by_id", "acknowledged_by_id"),
        Index("ix_monitoring_alerts_assigned_to_id", "assigned_to_id"),
        Index("ix_monitoring_alerts_resolved_by_id", "resolved_by_id"),
        # What the ticks look at: what is not over, and what is not told of to its end.
        Index("ix_monitoring_alerts_uncleared", "id", postgresql_where=text("cleared_at IS NULL")),
        Index("ix_monitoring_alerts_unsettled", "id", postgresql_where=text("settled_at IS NULL")),
        Index("ix_monitoring_alerts_fingerprint", "fingerprint", "episode"),
        # Retention.
        Index("ix_monitoring_alerts_resolved_at", "resolved_at", postgresql_where=text("resolved_at IS NOT NULL")),
    )


class AlertEvent(Base):
    """A line of an alert's timeline."""

    __tablename__ = "alert_events"

    id: Mapped[Key]
    alert_id: Mapped[BigInt] = mapped_column(ForeignKey(MonitoringAlert.id, ondelete="CASCADE"))
    at: Mapped[Timestamp] = mapped_column(server_default=func.clock_timestamp())
    kind: Mapped[AlertEventKind]
    actor: Mapped[str]
    message: Mapped[str | None]

    __table_args__ = (one_of("kind", AlertEventKind), Index("ix_alert_events_alert_id", "alert_id", "id"))
