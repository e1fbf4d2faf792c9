"""Something is wrong, and who knows of it."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.application import Application
from db.models.base import Base, BigInt, CreatedAt, JsonObject, Key, Timestamp, UpdatedAt, one_of
from db.models.deployment import Deployment
from db.models.infrastructure import Infrastructure
from db.models.user import User
from db.states import AlertStatus, Severity


class MonitoringAlert(Base):
    """An alert; at most one is open per fingerprint. Raised and resolved by beat jobs, nowhere else."""

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
    fired_at: Mapped[Timestamp | None]
    acknowledged_at: Mapped[Timestamp | None]
    acknowledged_by_id: Mapped[BigInt | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"))
    resolved_at: Mapped[Timestamp | None]
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
    )
