"""Accounts and the secrets they own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.encryption import Encrypted
from db.models.base import Base, BigInt, CreatedAt, Key, Timestamp, UpdatedAt, Versioned, one_of
from db.states import Role

if TYPE_CHECKING:
    from db.models.deployment import Deployment


class User(Versioned, Base):
    """A person or a program that acts. Names and addresses are unique whatever their case."""

    __tablename__ = "users"

    id: Mapped[Key]
    username: Mapped[str]
    email: Mapped[str]
    hashed_password: Mapped[str | None]
    role: Mapped[Role] = mapped_column(server_default=Role.OPERATOR.value)
    is_active: Mapped[bool] = mapped_column(server_default="true")
    last_login_at: Mapped[Timestamp | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    api_keys: Mapped[list[APIKey]] = relationship(back_populates="user", lazy="raise", passive_deletes=True)
    # Deleting a user who has deployed is for the database to refuse.
    deployments: Mapped[list[Deployment]] = relationship(back_populates="user", lazy="raise", passive_deletes="all")

    __table_args__ = (
        one_of("role", Role),
        Index("uq_users_username", text("lower(username)"), unique=True),
        Index("uq_users_email", text("lower(email)"), unique=True),
    )


class APIKey(Versioned, Base):
    """A secret named ``service_name/key_name`` that belongs to a user; encrypted in the table."""

    __tablename__ = "api_keys"

    id: Mapped[Key]
    user_id: Mapped[BigInt] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    service_name: Mapped[str]
    key_name: Mapped[str]
    encrypted_value: Mapped[str] = mapped_column(Encrypted("api_keys.encrypted_value"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    user: Mapped[User] = relationship(back_populates="api_keys", lazy="raise")

    __table_args__ = (UniqueConstraint("user_id", "service_name", "key_name"),)

    @property
    def name(self) -> str:
        return f"{self.service_name}/{self.key_name}"
