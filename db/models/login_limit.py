"""How many logins may still be tried. Counters, so no audit; what is refused is recorded by those who count."""

from __future__ import annotations

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, BigInt, Timestamp


class LoginLimit(Base):
    """What has been used up of the attempts of one account, one address, or one account at one address.

    One point in time says it all: each attempt moves ``refills_at`` on by the time in which one comes back, and an
    attempt is refused where it would lie too far ahead. A row whose time has passed tells nothing, and is removed.
    """

    __tablename__ = "login_limits"

    key: Mapped[str] = mapped_column(primary_key=True)
    refills_at: Mapped[Timestamp]
    succeeded_at: Mapped[Timestamp | None]
    # Refused since it was last told of in the audit trail, which was at `told_at`.
    refused: Mapped[BigInt] = mapped_column(server_default="0")
    told_at: Mapped[Timestamp | None]

    __table_args__ = (Index("ix_login_limits_refills_at", "refills_at"),)
