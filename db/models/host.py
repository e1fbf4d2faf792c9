"""The hosts of an infrastructure, and what a deployment did to each."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, BigInt, CreatedAt, Key, Timestamp, UpdatedAt, Versioned, one_of
from db.models.deployment import Deployment
from db.models.infrastructure import Infrastructure
from db.states import HostStatus

#: The most hosts of one infrastructure; their positions count from 0.
MAX_HOSTS = 1000


class Host(Versioned, Base):
    """One machine of an infrastructure. ``host_key``: the public keys it is known by, a line each; None: none is
    pinned, and nothing connects to it."""

    __tablename__ = "hosts"

    id: Mapped[Key]
    infrastructure_id: Mapped[BigInt] = mapped_column(ForeignKey(Infrastructure.id, ondelete="CASCADE"))
    name: Mapped[str]
    address: Mapped[str]
    port: Mapped[BigInt] = mapped_column(server_default="22")
    host_key: Mapped[str | None]
    position: Mapped[BigInt]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
        # Unique as well, so that no infrastructure has more hosts than positions.
        CheckConstraint(f"position BETWEEN 0 AND {MAX_HOSTS - 1}", name="position"),
        Index("uq_hosts_infrastructure_id_name", "infrastructure_id", text("lower(name)"), unique=True),
        Index("uq_hosts_infrastructure_id_position", "infrastructure_id", "position", unique=True),
    )


class DeploymentHost(Base):
    """What a deployment did to one host, as far as it is known. ``release``: what it left running there (None: it
    switched nothing); ``previous_release``: what ran there before (None: nothing, or not known)."""

    __tablename__ = "deployment_hosts"

    deployment_id: Mapped[BigInt] = mapped_column(ForeignKey(Deployment.id, ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[BigInt]
    batch: Mapped[BigInt | None]
    status: Mapped[HostStatus] = mapped_column(server_default=HostStatus.PENDING.value)
    release: Mapped[str | None]
    previous_release: Mapped[str | None]
    message: Mapped[str | None]
    attempt: Mapped[BigInt]
    started_at: Mapped[Timestamp | None]
    finished_at: Mapped[Timestamp | None]

    __table_args__ = (
        one_of("status", HostStatus),
        CheckConstraint("(status IN ('pending', 'running', 'switched')) = (finished_at IS NULL)", name="finished_at"),
    )
