"""Applications: what is deployed."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from db.models import Application, User
from db.repositories import ApplicationRepository
from db.services import rights
from db.specs import ApplicationSpec, check
from db.states import Role

_FIELDS = ("name", "description", "command", "working_directory", "health_check_url", "configuration")


def register(session: Session, *, actor: User | None = None, **values: Any) -> Application:
    """Add an application: ``name``, ``command`` (argv) and the other fields of :class:`ApplicationSpec`.

    Raises InvalidInput, AlreadyExists, PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "registering applications")
    return ApplicationRepository(session).add(Application(**_checked(values)))


def edit(session: Session, *, application: Application, actor: User | None = None, **values: Any) -> Application:
    """Change some fields; the whole is checked again.

    Raises InvalidInput, AlreadyExists, Conflict, PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "editing applications")
    current = {field: getattr(application, field) for field in _FIELDS}
    return ApplicationRepository(session).change(application, **_checked(current | values))


def remove(session: Session, *, application: Application, actor: User | None = None) -> None:
    """Remove an application that was never deployed. Raises Conflict, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "removing applications")
    ApplicationRepository(session).delete(application)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    spec = check(ApplicationSpec, values)
    stored = spec.model_dump(mode="json", exclude={"configuration"})
    # Only what was said: defaults may grow better in a later release.
    return stored | {"configuration": spec.configuration.model_dump(mode="json", exclude_unset=True)}
