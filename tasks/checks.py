"""Runs checks. PostgreSQL holds the schedule: a tick claims what is due and sends it in batches; a lost or doubled
message is harmless."""

from __future__ import annotations

import re
import time
from typing import Any
from uuid import UUID

import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.probes import Seen
from db.services import check_runs
from db.settings import get_settings
from db.states import CheckStatus
from tasks.ticks import tick

log = structlog.get_logger()

#: How often the tick comes, in seconds.
EVERY_SECONDS = 2.0
#: A tick claims for so long at most; the next one goes on.
CLAIM_SECONDS = 1.5


@shared_task(name="tasks.checks.dispatch")
def dispatch() -> dict[str, Any] | None:
    """Claim what is due, and send it to the workers of checks."""
    return tick(check_runs.TICK, EVERY_SECONDS, _dispatch)


def _dispatch(_session: Session) -> dict[str, Any] | None:
    with get_db_session(actor="tick checks", actor_type="beat") as session:
        changed = {"recalled": check_runs.recall(session), "excused": check_runs.excuse(session)}
    give_up = time.monotonic() + CLAIM_SECONDS
    sent = 0
    while time.monotonic() < give_up:
        with get_db_session(actor="tick checks", actor_type="beat") as session:
            batches = check_runs.claim(session)
        # After the commit: a batch that is not sent is claimed again when its runs are given up.
        for batch_id, check_ids in batches.items():
            _send(batch_id, check_ids)
        claimed = sum(map(len, batches.values()))
        sent += claimed
        if claimed < check_runs.BATCH:
            break
    # Each batch leaves an entry of its own when it has run.
    done = {name: count for name, count in changed.items() if count}
    return done or ({} if sent else None)


def _send(batch_id: UUID, check_ids: list[int]) -> None:
    try:
        run_batch.apply_async((str(batch_id), check_ids), expires=check_runs.EXPIRES, retry=False, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - a broker that is away, however it says so
        log.warning("batch_not_sent", batch_id=str(batch_id), error=type(error).__name__)


def is_batch(batch_id: Any, check_ids: Any) -> bool:
    """Whether :func:`_send` could have said that; whatever else is in a message would cost a statement and an error."""
    return (
        isinstance(batch_id, str)
        and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", batch_id) is not None
        and isinstance(check_ids, list)
        and 0 < len(check_ids) <= check_runs.BATCH
        and all(type(each) is int and 0 < each < 2**63 for each in check_ids)
    )


@shared_task(name="tasks.checks.run_batch", heeds=staticmethod(is_batch))
def run_batch(batch_id: str, check_ids: list[int]) -> dict[str, Any] | None:
    """Run checks at once, and record what they have seen. A late or repeated batch finds nothing in flight."""
    batch = UUID(batch_id)
    with get_db_session(actor="checks", actor_type="worker") as session:
        runs = check_runs.load(session, batch_id=batch, check_ids=check_ids)
    if not runs:
        log.info("batch_came_late", batch_id=batch_id)
        return None
    seen = look(runs)
    with get_db_session(actor="checks", actor_type="worker") as session:
        return check_runs.record(session, batch_id=batch, runs=runs, seen=seen)


def look(runs: list[check_runs.Run]) -> dict[int, Seen]:
    """What the runs have seen, by check; what cannot be planned has seen nothing."""
    from tasks import probes
    from tasks.probes.net import Net

    plans = [run.plan for run in runs if run.plan is not None]
    unplanned = {run.check_id: Seen(CheckStatus.UNKNOWN, None, run.problem) for run in runs if run.plan is None}
    return unplanned | probes.run(plans, Net(get_settings().probe_networks))
