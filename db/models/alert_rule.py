"""What people have changed of the rules that the platform watches itself by."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Float
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, BigInt, CreatedAt, UpdatedAt, one_of
from db.states import Severity


class AlertRule(Base):
    """A rule that somebody has changed; where nothing is said, what the code says holds (`db.services.rules`)."""

    __tablename__ = "alert_rules"

    name: Mapped[str] = mapped_column(primary_key=True)
    enabled: Mapped[bool] = mapped_column(server_default="true")
    threshold: Mapped[float | None] = mapped_column(Float)
    for_seconds: Mapped[BigInt | None]
    severity: Mapped[Severity | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        one_of("severity", Severity),
        CheckConstraint("for_seconds BETWEEN 0 AND 604800", name="for_seconds"),
    )
