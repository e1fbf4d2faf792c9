"""Who acts on the command line: a named user. Whoever holds the database's URL is trusted, and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.models import User


def user_name() -> str:
    """``OPS_USER``, else the name the operating system knows."""
    import getpass

    from db.settings import get_settings

    return get_settings().user or getpass.getuser()


@contextmanager
def session(*, write: bool = True, action: str | None = None) -> Iterator[tuple[Session, User]]:
    """A session in which everything is done by the acting user. Raises NotFound when there is none of that name, and
    PermissionDenied when that one is disabled."""
    from db.connection import get_db_session
    from db.errors import NotFound
    from db.repositories import UserRepository
    from db.services import rights
    from db.states import Role

    name = user_name()
    with get_db_session(actor=name, action=action) as opened:
        user = UserRepository(opened).get_by_username(name)
        if user is None:
            raise NotFound(
                f"you act as {name!r}, and there is no such user",
                hint="OPS_USER=NAME ops ..., or as an admin: ops user add, or on a new database: ops db init",
            )
        rights.require(user, Role.VIEWER, "looking")
        if write:
            from db.connection import audit_context

            audit_context(opened, actor=user.username, actor_id=user.id, actor_type="user")
        yield opened, user
