"""Where things are deployed to."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.encryption import Encrypted
from db.models.base import Base, BigInt, CreatedAt, JsonObject, Key, UpdatedAt, Versioned, one_of
from db.models.user import User
from db.states import Environment


class Infrastructure(Versioned, Base):
    """A place to deploy to: a driver with its settings, and the owner whose secrets a deployment opens."""

    __tablename__ = "infrastructure"

    id: Mapped[Key]
    name: Mapped[str]
    provider: Mapped[str] = mapped_column(server_default="local")
    region: Mapped[str | None]
    environment: Mapped[Environment] = mapped_column(server_default=Environment.DEV.value)
    driver: Mapped[str] = mapped_column(server_default="command")
    settings: Mapped[JsonObject]
    encrypted_settings: Mapped[str | None] = mapped_column(Encrypted("infrastructure.encrypted_settings"))
    owner_id: Mapped[BigInt] = mapped_column(ForeignKey(User.id, ondelete="RESTRICT"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    owner: Mapped[User] = relationship(lazy="raise")

    __table_args__ = (
        one_of("environment", Environment),
        CheckConstraint("jsonb_typeof(settings) = 'object'", name="settings"),
        Index("uq_infrastructure_name", text("lower(name)"), unique=True),
        Index("ix_infrastructure_owner_id", "owner_id", "id"),
    )
