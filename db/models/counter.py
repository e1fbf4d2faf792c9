"""What has been counted since the platform was installed: it only grows, whatever is removed or restarted."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Float, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.audit_log import XID8
from db.models.base import Base, BigInt


class Counter(Base):
    """One series. A histogram has a row per bucket that was hit, by its upper bound; a plain counter one, at infinity.

    ``total`` is the sum of what was measured, in seconds. A rollup of the audit trail, so no audit.
    """

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(primary_key=True)
    upto: Mapped[float] = mapped_column(Float, primary_key=True)
    count: Mapped[BigInt]
    total: Mapped[float] = mapped_column(Float, server_default="0")


class CounterPosition(Base):
    """Up to which entry of the trail was counted. One row."""

    __tablename__ = "counter_position"

    id: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    xid: Mapped[int] = mapped_column(XID8)
    entry_id: Mapped[BigInt]

    __table_args__ = (CheckConstraint("id", name="one_row"),)
