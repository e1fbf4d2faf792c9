"""The audit trail: append-only, one partition per month."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Identity, Index, func, text
from sqlalchemy.dialects.postgresql import INET, JSONB
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from db.models.base import Base, BigInt, one_of
from db.states import ActorType


class XID8(UserDefinedType[int]):
    """A transaction id that does not wrap; the driver knows it as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"

    def bind_processor(self, dialect: Dialect) -> Callable[[int | None], str | None]:  # noqa: ARG002
        return lambda value: None if value is None else str(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], int]:  # noqa: ARG002
        return int


# So that reflection (migration checks) knows the type, too.
ischema_names["xid8"] = XID8


class AuditLog(Base):
    """One thing that happened, written by the database in the transaction in which it happened.

    The actor is claimed by the caller (``actor_*``, ``client``); ``db_user`` is the login role that the database saw.
    ``changes`` holds ``{column: [old, new]}`` of the changed columns only.
    """

    __tablename__ = "audit_logs"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp(), primary_key=True
    )
    xid: Mapped[int] = mapped_column(XID8, server_default=text("pg_current_xact_id()"))
    action: Mapped[str]
    resource_type: Mapped[str]
    resource_id: Mapped[str | None]
    actor_type: Mapped[ActorType]
    actor_id: Mapped[BigInt | None]
    actor: Mapped[str]
    client: Mapped[str | None]
    ip_address: Mapped[IPv4Address | IPv6Address | None] = mapped_column(INET)
    user_agent: Mapped[str | None]
    request_id: Mapped[str | None]
    task_id: Mapped[UUID | None]
    db_user: Mapped[str] = mapped_column(server_default=text("session_user"))
    changes: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    details: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    __table_args__ = (
        one_of("actor_type", ActorType),
        Index("ix_audit_logs_resource", "resource_type", "resource_id", "id"),
        Index("ix_audit_logs_actor", "actor", "id"),
        Index("ix_audit_logs_actor_id", "actor_id", "id", postgresql_where=text("actor_id IS NOT NULL")),
        # Whatever the database's collation, a prefix (`job.*`) is a range of it.
        Index("ix_audit_logs_action", "action", "id", postgresql_ops={"action": "text_pattern_ops"}),
        Index("ix_audit_logs_task_id", "task_id", "id", postgresql_where=text("task_id IS NOT NULL")),
        Index("ix_audit_logs_at", "at", postgresql_using="brin"),
        Index("ix_audit_logs_id", "id", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
        # The order in which entries are sealed and verified.
        Index("ix_audit_logs_xid", "xid", "id"),
        # Of all keys and values: a search may ask for a column without a value.
        Index("ix_audit_logs_changes", "changes", postgresql_using="gin"),
        Index(
            "ix_audit_logs_opened",
            text("(details ->> 'name')"),
            "id",
            postgresql_where=text("action = 'secret.opened'"),
        ),
        {"postgresql_partition_by": "RANGE (at)"},
    )
