"""Fires schedules."""

from __future__ import annotations

from typing import Any

import structlog
from celery import shared_task
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.services import firing
from db.services.firing import Fired
from tasks.ticks import tick

log = structlog.get_logger()

#: Schedules per run: what is due beyond it is fired by the next run.
MOST = 500


@shared_task(name="tasks.schedules.fire")
def fire() -> dict[str, Any] | None:
    """Enqueue what is due by schedule."""
    return tick("schedules", 1.0, _work)


def _work(_session: Session) -> dict[str, Any] | None:
    # What was fired stands in the history of each schedule: no entry beside it.
    return {} if fire_all() else None


def fire_all(most: int = MOST) -> list[Fired]:
    """Fire what is due, each schedule in a transaction of its own and at most once. Raises DatabaseUnavailable."""
    done: list[Fired] = []
    tried: set[int] = set()
    while len(tried) < most:
        looked_at = len(tried)
        try:
            with get_db_session(actor="tick schedules", actor_type="beat") as session:
                fired = firing.fire_next(session, tried=tried)
        except DBAPIError as error:
            if len(tried) == looked_at:
                raise
            # It is still due, and tried again by the next run; the others do not wait for it.
            log.warning("schedule_not_fired", error=type(error.orig).__name__)
            continue
        if fired is None:
            break
        log.info("schedule_fired", schedule_id=fired.schedule_id, outcome=fired.outcome.value)
        done.append(fired)
    return done
