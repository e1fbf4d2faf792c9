"""What is deployed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, JsonObject, Key, UpdatedAt, Versioned


class Application(Versioned, Base):
    """A program and how to put one version of it somewhere.

    ``command`` is an argv, never a shell line; ``configuration`` is checked by the driver's model when it is saved.
    """

    __tablename__ = "applications"

    id: Mapped[Key]
    name: Mapped[str]
    description: Mapped[str | None]
    command: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]")
    working_directory: Mapped[str | None]
    health_check_url: Mapped[str | None]
    configuration: Mapped[JsonObject]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        CheckConstraint("jsonb_typeof(command) = 'array'", name="command"),
        CheckConstraint("jsonb_typeof(configuration) = 'object'", name="configuration"),
        Index("uq_applications_name", text("lower(name)"), unique=True),
    )
