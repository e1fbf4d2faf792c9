"""Why a job has not started yet, in one line for a person."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from db.models import Job
from db.repositories.stats import StatsRepository
from db.states import JobState


def why(session: Session, job: Job) -> str | None:
    """What a queued job waits for; None for every other state."""
    if job.state is not JobState.QUEUED:
        return None
    stats = StatsRepository(session)
    state = stats.ledger_state()
    if state.paused_because is not None:
        return f"the ledger is paused: {state.reason or state.paused_because}; ops resume"
    now = datetime.now(UTC)
    if job.run_at > now:
        again = f" (attempt {job.attempt} ended: {job.outcome.value})" if job.outcome else ""
        return f"not due before {job.run_at.isoformat(timespec='seconds')}{again}"
    if job.lock_key is not None:
        holder = stats.holder_of(job.lock_key)
        ahead = stats.ahead_of(job)
        if holder is not None and holder.id == job.id:
            return None  # it has begun since it was read
        if holder is not None:
            return (
                f"position {ahead + 1} behind {_name(holder)} on lock {job.lock_key}, "
                f"held {_long(now, holder.started_at)} by worker {holder.worker}"
            )
        if ahead:
            return f"position {ahead + 1} on lock {job.lock_key}, which is free: those ahead start first"
    if not stats.workers_of(job.queue):
        return f"no worker serves queue {job.queue}"
    if job.rings:
        return f"rung {job.rings} times; the workers of queue {job.queue} are busy, or the broker is away"
    return f"its doorbell is on its way to queue {job.queue}"


def _name(job: Job) -> str:
    """A job as people know it: its deployment, where it has one."""
    number = job.kwargs.get("deployment_id")
    return f"deployment {number}" if number is not None else f"job {job.id}"


def _long(now: datetime, since: datetime | None) -> str:
    seconds = max(0, round((now - since).total_seconds())) if since else 0
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {seconds} s" if minutes else f"{seconds} s"
