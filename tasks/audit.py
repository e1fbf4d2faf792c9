"""Seals the audit trail."""

from __future__ import annotations

from typing import Any

import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.errors import Refused
from db.seals import Seal, seal_keys
from db.services import outside, sealing
from db.settings import get_settings
from tasks.ticks import tick

log = structlog.get_logger()

#: Seals per run: a first run over an old trail goes on in the next.
MOST_SEALS = 200


@shared_task(name="tasks.audit.seal")
def seal() -> dict[str, Any] | None:
    """Seal what was written to the trail since the last run."""
    if seal_keys().signer is None:
        return None
    return tick("seal", 10.0, _work)


def _work(_session: Session) -> dict[str, Any] | None:
    try:
        # Recorded by the seals themselves: an entry about them would want a seal of its own.
        return {} if seal_all() else None
    except Refused as error:
        log.warning("audit_not_sealed", reason=str(error))
        return None


def seal_all(most: int = MOST_SEALS) -> list[Seal]:
    """Seal until nothing waits, each seal in a transaction of its own; then tell the world outside the database.

    Raises Refused.
    """
    keys = seal_keys()
    made: list[Seal] = []
    while len(made) < most:
        with get_db_session(actor="sealer", actor_type="beat") as session:
            sealed = sealing.seal_next(session, keys)
        if sealed is None:
            break
        made.append(sealed.seal)
        _tell(sealed.seal)
        if not sealed.more:
            break
    return made


def _tell(made: Seal) -> None:
    """Only after the commit: a seal outside that the database does not hold means a cut-off tail."""
    log.info(
        "audit_sealed", number=made.number, entries=made.count, digest=made.digest.hex(),
        signature=made.signature.hex(), at=made.sealed_at.isoformat(),
    )  # fmt: skip
    path = get_settings().audit_seal_file
    if path is None:
        return
    try:
        outside.append(path, made)
    except OSError as error:
        log.warning("audit_seal_not_written_outside", number=made.number, file=str(path), reason=error.strerror)
