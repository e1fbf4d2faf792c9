"""Accounts."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db import passwords
from db.errors import Conflict, InvalidInput
from db.models import User
from db.repositories import UserRepository
from db.services import rights
from db.specs import UserSpec, check, storable
from db.states import Role


def create(
    session: Session,
    *,
    username: str,
    email: str,
    password: str | None = None,
    hashed_password: str | None = None,
    role: Role | str = Role.OPERATOR,
    actor: User | None = None,
) -> User:
    """Register a user. ``hashed_password`` is stored as it is; ``password`` is hashed first.

    Raises AlreadyExists, InvalidInput, PermissionDenied.
    """
    rights.require(actor, Role.ADMIN, "creating users")
    spec = check(UserSpec, {"username": username, "email": email, "hashed_password": hashed_password})
    known_role = _role(role)
    if password is not None:
        hashed_password = passwords.hash_password(acceptable(password))
    user = User(
        username=spec.username, email=spec.email, hashed_password=hashed_password, role=known_role, is_active=True
    )
    return UserRepository(session).add(user)


def set_password(session: Session, *, user: User, password: str, actor: User | None = None) -> User:
    """Give a user a new password. Raises InvalidInput for one too short, PermissionDenied."""
    return UserRepository(session).change(user, hashed_password=hash_for(user.id, password, actor=actor))


def hash_for(user_id: int, password: str, *, actor: User | None = None) -> str:
    """The hash of a new password of a user, made before the database is asked for anything. Raises InvalidInput for
    one too short, PermissionDenied."""
    rights.require_self_or(actor, user_id, Role.ADMIN, "setting the password of others")
    return passwords.hash_password(acceptable(password))


def set_active(session: Session, *, user: User, active: bool, actor: User | None = None) -> User:
    """Disable or enable a user. Raises PermissionDenied, and Conflict for the last admin: nobody could undo it."""
    rights.require(actor, Role.ADMIN, "disabling users")
    if not isinstance(active, bool):
        raise InvalidInput("active is true or false")
    if not active and UserRepository(session).lock_active_admins() == [user.id]:
        raise Conflict(
            f"{user.username} is the last active admin", hint="ops user add NAME EMAIL --role admin, then disable"
        )
    return UserRepository(session).change(user, is_active=active)


def set_role(session: Session, *, user: User, role: Role | str, actor: User | None = None) -> User:
    """Make a user a viewer, an operator or an admin. Raises InvalidInput, Conflict, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "changing roles")
    return UserRepository(session).change(user, role=_role(role))


def acceptable(password: str) -> str:
    """The password. Raises InvalidInput when it is too short, absurdly long, or no text."""
    storable(password, "a password")
    if len(password) < passwords.MIN_LENGTH:
        raise InvalidInput(f"a password has at least {passwords.MIN_LENGTH} characters")
    if len(password) > passwords.MAX_LENGTH:
        raise InvalidInput(f"a password has at most {passwords.MAX_LENGTH} characters")
    return password


def _role(role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise InvalidInput(f"{str(role)[:40]!r} is no role; roles are: {', '.join(Role)}") from None
