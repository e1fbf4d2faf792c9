"""Accounts."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db import passwords
from db.errors import Conflict, InvalidInput
from db.ledger import clean
from db.models import User
from db.repositories import AuditLogRepository, UserRepository
from db.services import rights
from db.specs import UserSpec, check
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
    spec = check(UserSpec, {"username": username, "email": email})
    if password is not None:
        hashed_password = passwords.hash_password(acceptable(password))
    user = User(
        username=spec.username, email=spec.email, hashed_password=hashed_password, role=_role(role), is_active=True
    )
    return UserRepository(session).add(user)


def set_password(session: Session, *, user: User, password: str, actor: User | None = None) -> User:
    """Give a user a new password. Raises InvalidInput for one too short, PermissionDenied."""
    rights.require_self_or(actor, user.id, Role.ADMIN, "setting the password of others")
    hashed = passwords.hash_password(acceptable(password))
    return UserRepository(session).change(user, hashed_password=hashed)


def set_active(session: Session, *, user: User, active: bool, actor: User | None = None) -> User:
    """Disable or enable a user. Raises PermissionDenied, and Conflict for the last admin: nobody could undo it."""
    rights.require(actor, Role.ADMIN, "disabling users")
    if not active and UserRepository(session).lock_active_admins() == [user.id]:
        raise Conflict(
            f"{user.username} is the last active admin", hint="ops user add NAME EMAIL --role admin, then disable"
        )
    return UserRepository(session).change(user, is_active=active)


def authenticate(session: Session, *, username: str, password: str) -> User | None:
    """The user whose password this is, or None; each failure leaves an audit entry with where it came from."""
    username = clean(username[:200]) or ""
    user = UserRepository(session).get_by_username(username)
    right = passwords.verify(password, user.hashed_password if user else None)
    if user is None or not right or not user.is_active:
        reason = "unknown user" if user is None else "wrong password" if not right else "disabled"
        AuditLogRepository(session).add(
            "user.login_failed", "user", user.id if user else None, {"username": username, "reason": reason}
        )
        return None
    UserRepository(session).note_login(user)
    AuditLogRepository(session).add("user.login", "user", user.id)
    return user


def acceptable(password: str) -> str:
    """The password. Raises InvalidInput when it is too short or absurdly long."""
    if len(password) < passwords.MIN_LENGTH:
        raise InvalidInput(f"a password has at least {passwords.MIN_LENGTH} characters")
    if len(password) > passwords.MAX_LENGTH:
        raise InvalidInput(f"a password has at most {passwords.MAX_LENGTH} characters")
    return password


def _role(role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise InvalidInput(f"{role!r} is no role; roles are: {', '.join(Role)}") from None
