"""Who may do what. No actor means the platform itself, which is trusted; so is whoever holds the database's URL."""

from __future__ import annotations

from db.errors import PermissionDenied
from db.models import User
from db.states import Role


def require(actor: User | None, role: Role, what: str) -> None:
    """Raises PermissionDenied unless the actor is active and has at least this role."""
    if actor is None:
        return
    if not actor.is_active:
        raise PermissionDenied(f"{actor.username} is disabled")
    if not actor.role.may(role):
        raise PermissionDenied(f"{what} needs the role {role.value}; {actor.username} is {actor.role.value}")


def require_self_or(actor: User | None, owner_id: int, role: Role, what: str) -> None:
    """As :func:`require`, but what is one's own needs no more than being active."""
    if actor is not None and actor.id == owner_id and actor.is_active:
        return
    require(actor, role, what)
