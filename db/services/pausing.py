"""Start nothing for a while, and go on; also after the database came back from a backup."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.errors import Conflict
from db.ledger import clean
from db.models import LedgerState, User
from db.repositories.stats import StatsRepository
from db.services import rights
from db.states import Role


def pause(session: Session, *, reason: str | None = None, actor: User | None = None) -> None:
    """Start nothing from now on; what runs goes on. Raises PermissionDenied, Conflict when it is paused already."""
    rights.require(actor, Role.OPERATOR, "pausing the ledger")
    apply_context(session)
    if not session.scalar(select(_functions().ops_pause((clean(reason) or "")[:500] or None))):
        raise Conflict("the ledger is paused already", hint="ops resume")


def resume(
    session: Session,
    *,
    queued: Literal["run", "cancel"] | None = None,
    trust_failover: bool | None = None,
    actor: User | None = None,
) -> None:
    """Go on. After a restore ``queued`` says whether to run what waits here, some of which the database that was lost
    may have run, or to cancel it (but for idempotent jobs).

    ``trust_failover``: a standby that takes over has forgotten nothing, so do not pause for it. Raises Conflict when
    nothing is paused, or when ``queued`` is needed; PermissionDenied.
    """
    rights.require(actor, Role.ADMIN if trust_failover is not None else Role.OPERATOR, "resuming the ledger")
    apply_context(session)
    because = session.scalar(select(_functions().ops_paused()))
    if because == "restored" and queued is None:
        raise Conflict(
            f"{StatsRepository(session).ledger_state().reason}; jobs that wait here may have been run since the backup",
            hint="ops resume --queued cancel, or --queued run",
        )
    if not session.scalar(select(_functions().ops_resume(queued, trust_failover))) and trust_failover is None:
        raise Conflict("the ledger is not paused")


def _functions() -> Any:
    return getattr(func, LedgerState.__table__.schema or "public")
