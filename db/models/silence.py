"""When alerts are not told of, and when nothing is decided."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, BigInt, CreatedAt, Key, Timestamp
from db.models.user import User


class Silence(Base):
    """Alerts whose labels match are not told of from one time to another. They fire and resolve nevertheless."""

    __tablename__ = "silences"

    id: Mapped[Key]
    matchers: Mapped[dict[str, Any]] = mapped_column(JSONB)
    comment: Mapped[str | None]
    starts_at: Mapped[Timestamp]
    ends_at: Mapped[Timestamp]
    ended_at: Mapped[Timestamp | None]
    created_by_id: Mapped[BigInt | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"))
    created_at: Mapped[CreatedAt]

    __table_args__ = (
        CheckConstraint("ends_at > starts_at AND ends_at - starts_at <= interval '90 days'", name="ends_at"),
        CheckConstraint("jsonb_typeof(matchers) = 'object' AND matchers <> '{}'", name="matchers"),
        Index("ix_silences_ends_at", "ends_at"),
        Index("ix_silences_created_by_id", "created_by_id"),
    )


class MaintenanceWindow(Base):
    """Somebody works on what matches: nothing is raised or resolved meanwhile; at its end, what is so then decides."""

    __tablename__ = "maintenance_windows"

    id: Mapped[Key]
    title: Mapped[str]
    matchers: Mapped[dict[str, Any]] = mapped_column(JSONB)
    starts_at: Mapped[Timestamp]
    ends_at: Mapped[Timestamp]
    ended_at: Mapped[Timestamp | None]
    created_by_id: Mapped[BigInt | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"))
    created_at: Mapped[CreatedAt]

    __table_args__ = (
        CheckConstraint("ends_at > starts_at AND ends_at - starts_at <= interval '90 days'", name="ends_at"),
        CheckConstraint("jsonb_typeof(matchers) = 'object' AND matchers <> '{}'", name="matchers"),
        Index("ix_maintenance_windows_ends_at", "ends_at"),
        Index("ix_maintenance_windows_created_by_id", "created_by_id"),
    )
