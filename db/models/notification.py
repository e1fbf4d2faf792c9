"""Who is told of alerts, by which way, and what they were told."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.encryption import Encrypted
from db.models.base import Base, BigInt, CreatedAt, Key, Timestamp, UpdatedAt, Versioned, one_of
from db.models.job import Job
from db.models.monitoring_alert import MonitoringAlert
from db.states import ChannelKind, NotificationState, Severity, Transition

_OPEN = text("state IN ('waiting', 'queued')")


class NotificationChannel(Versioned, Base):
    """A way to tell somebody. ``encrypted_config`` is JSON with all that reaching them takes, their address too.

    ``rate_limit``: messages a minute at most. ``is_broken``: it was disabled by an error of its own, not by a person.
    """

    __tablename__ = "notification_channels"

    id: Mapped[Key]
    name: Mapped[str]
    kind: Mapped[ChannelKind]
    encrypted_config: Mapped[str] = mapped_column(Encrypted("notification_channels.encrypted_config"))
    rate_limit: Mapped[BigInt] = mapped_column(server_default="10")
    disabled_at: Mapped[Timestamp | None]
    disabled_because: Mapped[str | None]
    is_broken: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        one_of("kind", ChannelKind),
        CheckConstraint("rate_limit BETWEEN 1 AND 1000", name="rate_limit"),
        CheckConstraint("(disabled_at IS NULL) = (disabled_because IS NULL)", name="disabled_because"),
        CheckConstraint("NOT is_broken OR disabled_at IS NOT NULL", name="is_broken"),
        Index("uq_notification_channels_name", func.lower(text("name")), unique=True),
    )


class NotificationRoute(Base):
    """Which alerts a channel tells of: those of a severity and above whose labels match.

    They are gathered by the labels of ``group_by`` for ``wait_seconds``, and repeated every ``repeat_seconds``
    (0: never) while they fire and nobody looks after them.
    """

    __tablename__ = "notification_routes"

    id: Mapped[Key]
    channel_id: Mapped[BigInt] = mapped_column(ForeignKey(NotificationChannel.id, ondelete="CASCADE"))
    severity: Mapped[Severity] = mapped_column(server_default=Severity.LOW.value)
    matchers: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    group_by: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    wait_seconds: Mapped[BigInt] = mapped_column(server_default="30")
    repeat_seconds: Mapped[BigInt] = mapped_column(server_default="14400")
    created_at: Mapped[CreatedAt]

    __table_args__ = (
        one_of("severity", Severity),
        CheckConstraint("wait_seconds BETWEEN 0 AND 3600", name="wait_seconds"),
        CheckConstraint("repeat_seconds = 0 OR repeat_seconds BETWEEN 60 AND 2592000", name="repeat_seconds"),
        CheckConstraint("jsonb_typeof(matchers) = 'object'", name="matchers"),
        Index("ix_notification_routes_channel_id", "channel_id", "id"),
    )


class Notification(Base):
    """One thing told of one alert by one channel, once; ``job_id`` is the job that sends the message it is part of."""

    __tablename__ = "notifications"

    id: Mapped[Key]
    alert_id: Mapped[BigInt] = mapped_column(ForeignKey(MonitoringAlert.id, ondelete="CASCADE"))
    channel_id: Mapped[BigInt] = mapped_column(ForeignKey(NotificationChannel.id, ondelete="CASCADE"))
    transition: Mapped[Transition]
    sequence: Mapped[BigInt] = mapped_column(server_default="0")
    group_key: Mapped[str]
    state: Mapped[NotificationState] = mapped_column(server_default=NotificationState.WAITING.value)
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey(Job.id, ondelete="SET NULL"))
    error: Mapped[str | None]
    due_at: Mapped[Timestamp]
    created_at: Mapped[CreatedAt]
    queued_at: Mapped[Timestamp | None]
    finished_at: Mapped[Timestamp | None]

    __table_args__ = (
        one_of("state", NotificationState),
        one_of("transition", Transition),
        CheckConstraint("(state IN ('sent', 'failed')) = (finished_at IS NOT NULL)", name="finished_at"),
        CheckConstraint("state NOT IN ('queued', 'sent') OR queued_at IS NOT NULL", name="queued_at"),
        CheckConstraint("(transition = 'repeated') = (sequence > 0)", name="sequence"),
        UniqueConstraint("alert_id", "transition", "sequence", "channel_id"),
        Index("ix_notifications_channel_id", "channel_id", "queued_at"),
        Index("ix_notifications_open", "channel_id", "group_key", "id", postgresql_where=_OPEN),
        Index("ix_notifications_job_id", "job_id"),
    )
