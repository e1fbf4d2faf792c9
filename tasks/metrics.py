"""Counts what has happened, for those who watch."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from db.connection import get_db_session
from db.services import metrics
from tasks.ticks import tick

#: Seconds between two rounds.
EVERY = 15.0
#: Rounds of one run: what is left is for the next.
MOST_ROUNDS = 50


@shared_task(name="tasks.metrics.count")
def count() -> dict[str, Any] | None:
    """Count what was written to the trail since the last run."""
    return tick("metrics", EVERY, _work)


def _work(_session: object) -> dict[str, Any] | None:
    """Each round in a transaction of its own, which commits the counts with the position. No entry tells of it: that
    would be counted in turn."""
    counted = 0
    for _ in range(MOST_ROUNDS):
        with get_db_session(actor="counter", actor_type="beat") as session:
            round_ = metrics.count_next(session)
        counted += round_
        if round_ < metrics.BATCH:
            break
    return {} if counted else None
