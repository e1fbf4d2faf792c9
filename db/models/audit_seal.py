"""The seals of the audit trail: append-only, each over a run of entries and the seal before it."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from db.models.audit_log import XID8
from db.models.base import Base, BigInt, Timestamp


class AuditSeal(Base):
    """What ``db.seals.Seal`` holds; its fields are described there.

    Whoever runs the platform may add a row, and nobody change one. A row is a seal by its signature alone.
    """

    __tablename__ = "audit_seals"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sealed_at: Mapped[Timestamp]
    cluster: Mapped[BigInt]
    epoch: Mapped[BigInt]
    floor_id: Mapped[BigInt]
    highest_id: Mapped[BigInt]
    from_xid: Mapped[int] = mapped_column(XID8)
    from_id: Mapped[BigInt]
    to_xid: Mapped[int] = mapped_column(XID8)
    to_id: Mapped[BigInt]
    next_xid: Mapped[int] = mapped_column(XID8)
    count: Mapped[BigInt]
    first_at: Mapped[Timestamp]
    last_at: Mapped[Timestamp]
    form: Mapped[BigInt]
    entries: Mapped[bytes] = mapped_column(LargeBinary)
    root: Mapped[bytes] = mapped_column(LargeBinary)
    previous: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str]
    signature: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (
        CheckConstraint("count BETWEEN 1 AND 100000 AND octet_length(entries) = count * 24", name="entries"),
        CheckConstraint(
            "octet_length(root) = 32 AND octet_length(previous) = 32 AND octet_length(digest) = 32"
            " AND octet_length(signature) = 64 AND length(key_id) <= 32",
            name="lengths",
        ),
    )
