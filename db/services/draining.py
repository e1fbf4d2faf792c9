"""Let workers finish what they run and take nothing new, e.g. before they are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.errors import NotFound
from db.models import Process, User
from db.repositories import ProcessRepository
from db.services import rights
from db.states import Role


def drain(session: Session, worker: str | None = None, *, actor: User | None = None) -> Sequence[Process]:
    """Ask living workers to take nothing new; those that drain already go on doing so.

    ``worker``: a name, or either half of it (``deployments@web1``, ``deployments``, ``web1``); None: all of them. It is
    the process that drains: one that is started later works. Raises NotFound, PermissionDenied.
    """
    return _ask(session, worker, actor, wanted=True)


def undrain(session: Session, worker: str | None = None, *, actor: User | None = None) -> Sequence[Process]:
    """Ask living workers to work again; named and raising as for :func:`drain`."""
    return _ask(session, worker, actor, wanted=False)


def _ask(session: Session, worker: str | None, actor: User | None, *, wanted: bool) -> Sequence[Process]:
    rights.require(actor, Role.OPERATOR, "draining workers" if wanted else "letting workers work again")
    found = ProcessRepository(session).list_alive_workers(worker)
    if not found:
        raise NotFound(
            f"no living worker is named {worker!r}" if worker else "no worker was seen lately", hint="ops status"
        )
    apply_context(session)
    functions: Any = getattr(func, Process.__table__.schema or "public")
    session.execute(select(functions.ops_drain([each.id for each in found], wanted))).all()
    return found
