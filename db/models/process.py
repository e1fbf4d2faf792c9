"""Who is alive: workers, beats and relays say so every few seconds. Heartbeats, so no audit."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, BigInt, CreatedAt, JsonObject, Timestamp

KINDS = ("worker", "beat", "relay")


class Process(Base):
    """One running process of the platform, keyed by the id it gave itself at its start."""

    __tablename__ = "processes"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    host: Mapped[str]
    pid: Mapped[BigInt]
    info: Mapped[JsonObject]
    started_at: Mapped[CreatedAt]
    seen_at: Mapped[Timestamp]
    #: Since when it is asked to take nothing new. Set by ``ops_drain``; ``info`` says whether it has heard.
    draining_at: Mapped[Timestamp | None]

    __table_args__ = (
        CheckConstraint(f"kind IN {KINDS}", name="kind"),
        Index("ix_processes_seen_at", "kind", "seen_at"),
    )


class Tick(Base):
    """When a periodic job last ran, so that any number of beats drive it no faster than one would."""

    __tablename__ = "ticks"

    name: Mapped[str] = mapped_column(primary_key=True)
    last_run_at: Mapped[Timestamp | None]
    last_success_at: Mapped[Timestamp | None]
    idle_runs: Mapped[BigInt] = mapped_column(server_default="0")
    reported_at: Mapped[Timestamp | None]


class EncryptionKey(Base):
    """A key id this database has seen, with a value sealed by it: a process whose key does not open it stops.

    A retired one seals nothing any more, here or in any table of ours, and has no such value.
    """

    __tablename__ = "encryption_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    check_value: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    retired_at: Mapped[Timestamp | None]

    __table_args__ = (CheckConstraint("(retired_at IS NULL) = (check_value IS NOT NULL)", name="retired"),)
