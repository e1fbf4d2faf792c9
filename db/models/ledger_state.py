"""Whether the ledger starts anything, and on which server it last did."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, BigInt, Timestamp


class LedgerState(Base):
    """One row. Written by functions only; see ``migrations/versions/*_pause.sql``."""

    __tablename__ = "ledger_state"

    id: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    paused_at: Mapped[Timestamp | None]
    paused_because: Mapped[str | None]
    reason: Mapped[str | None]
    server: Mapped[BigInt]
    timeline: Mapped[str]
    server_started_at: Mapped[Timestamp]
    trusts_failover: Mapped[bool] = mapped_column(server_default=text("false"))

    __table_args__ = (
        CheckConstraint("id", name="one_row"),
        CheckConstraint("paused_because IN ('asked', 'restored')", name="paused_because"),
        CheckConstraint("(paused_at IS NULL) = (paused_because IS NULL)", name="paused_at"),
    )
