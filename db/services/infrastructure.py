"""Infrastructure: where things are deployed to."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from db.models import Infrastructure, User
from db.repositories import InfrastructureRepository, UserRepository
from db.services import rights
from db.specs import InfrastructureSpec, check
from db.states import Role

_FIELDS = ("name", "provider", "region", "environment", "driver", "settings")


def register(session: Session, *, owner_id: int, actor: User | None = None, **values: Any) -> Infrastructure:
    """Add an infrastructure: ``name`` and the other fields of :class:`InfrastructureSpec`. Deployments there open the
    owner's secrets.

    Raises InvalidInput, AlreadyExists, NotFound, PermissionDenied.
    """
    rights.require_self_or(actor, owner_id, Role.ADMIN, "registering infrastructure for others")
    rights.require(actor, Role.OPERATOR, "registering infrastructure")
    spec = check(InfrastructureSpec, values)
    UserRepository(session).require(owner_id)
    return InfrastructureRepository(session).add(Infrastructure(owner_id=owner_id, **spec.model_dump()))


def edit(
    session: Session, *, infrastructure: Infrastructure, actor: User | None = None, **values: Any
) -> Infrastructure:
    """Change some fields; the whole is checked again.

    Raises InvalidInput, AlreadyExists, Conflict, PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "editing infrastructure")
    current = {field: getattr(infrastructure, field) for field in _FIELDS}
    spec = check(InfrastructureSpec, current | values)
    return InfrastructureRepository(session).change(infrastructure, **spec.model_dump())


def remove(session: Session, *, infrastructure: Infrastructure, actor: User | None = None) -> None:
    """Remove an infrastructure that was never deployed to. Raises Conflict, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "removing infrastructure")
    InfrastructureRepository(session).delete(infrastructure)
