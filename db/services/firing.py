"""Firing schedules: each time of each schedule once, however many do it at once.

A row whose time has come is held (SKIP LOCKED: others take other rows), what it enqueues, what became of that time and
its next time are written in one transaction. So whoever dies in the middle has done nothing, and the row is still due.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.connection import audit_context, savepoint
from db.errors import Conflict, DatabaseUnavailable, OpsError, PermissionDenied
from db.ledger import clean
from db.models import Schedule, ScheduleRun
from db.repositories import JobRepository, JobSpec, ScheduleRepository, ScheduleRunRepository
from db.repositories.schedules import Due, Tried
from db.services import deployments, rights
from db.states import CatchUp, Overlap, Role, RunOutcome

#: What is fired later than this after its time was missed.
GRACE = timedelta(seconds=60)
#: What cannot even be looked at is looked at again after this.
PUSH = timedelta(hours=1)
#: So many runs of a schedule line up at most; and so many count as a row of failures.
MOST_WAITING = 100


@dataclass(frozen=True, slots=True)
class Fired:
    """What became of a schedule whose time had come."""

    schedule_id: int
    fire_at: datetime
    outcome: RunOutcome
    reason: str | None


def fire_next(session: Session, *, now: datetime | None = None, tried: set[int] | None = None) -> Fired | None:
    """Fire the schedule that has been due for longest; None: nothing is due.

    ``now`` stands in for the database's clock. Schedules in ``tried`` are left alone, and the one that is looked at is
    added to it before anything can fail. Raises what a database raises that may answer next time; whatever else goes
    wrong becomes the outcome of that time, so that it holds up neither others nor itself.
    """
    tried = set() if tried is None else tried
    due = ScheduleRepository(session).lock_due(now, tried)
    if due is None:
        return None
    tried.add(due.id)
    try:
        with savepoint(session):
            return _fire(session, due)
    except Exception as error:
        if isinstance(error, DatabaseUnavailable) or (isinstance(error, DBAPIError) and _may_pass(error)):
            raise
        # What an error of others says may show what nobody should read.
        said = f": {error}" if isinstance(error, OpsError | ValueError) else ""
        return _push(session, due, f"unexpected {type(error).__name__}{said}")


def enqueue_by_hand(session: Session, schedule: Schedule) -> ScheduleRun:
    """Enqueue once, beside its own times; the caller holds its row. Raises Conflict and what enqueueing raises."""
    tried = ScheduleRunRepository(session).tried(schedule.id, MOST_WAITING)
    if reason := _overlaps(schedule, tried):
        raise Conflict(f"schedule {schedule.name}: {reason}")
    schedule = ScheduleRepository(session).require_by_name(schedule.name)
    job_id, deployment_id = _enqueue(session, schedule)
    now = session.scalar(select(func.clock_timestamp()))
    assert isinstance(now, datetime)
    return ScheduleRunRepository(session).add(
        ScheduleRun(
            schedule_id=schedule.id, fire_at=now, fired_at=now, by_hand=True, outcome=RunOutcome.ENQUEUED,
            job_id=job_id, deployment_id=deployment_id,
        )
    )  # fmt: skip


def _fire(session: Session, due: Due) -> Fired:
    schedule = ScheduleRepository(session).require(due.id, *ScheduleRepository.list_options)
    # Who does it is nobody; whose rights it uses is said by the id.
    audit_context(session, actor=f"schedule {schedule.name}", actor_type="beat", actor_id=schedule.user_id)
    recurrence = schedule.recurrence
    latest = max(recurrence.latest(due.now) or due.fire_at, due.fire_at)
    upcoming = recurrence.after(due.now)
    missed = due.now - latest > GRACE and schedule.catch_up is CatchUp.NONE
    if missed or latest != due.fire_at:
        reason = f"missed: nothing fired schedules until {_utc(due.now if missed else latest)}"
        fired = _record(session, due, due.fire_at, RunOutcome.SKIPPED, reason)
    if not missed:
        fired = _fire_at(session, schedule, due, latest)
    # Where it was paused meanwhile, it has no next time to be compared with: nothing is set.
    ScheduleRepository(session).advance(due.id, due.fire_at, next_run_at=upcoming, last_fired_at=latest)
    return fired


def _fire_at(session: Session, schedule: Schedule, due: Due, fire_at: datetime) -> Fired:
    """Decide what becomes of one time, do it, and write it down."""
    runs = ScheduleRunRepository(session)
    if schedule.last_fired_at is not None and fire_at <= schedule.last_fired_at and runs.has(due.id, fire_at):
        # Its next time was set back by hand.
        return Fired(due.id, fire_at, RunOutcome.SKIPPED, "fired already")
    tried = runs.tried(due.id, MOST_WAITING)
    if _fails_in_a_row(schedule, tried):
        because = f"{schedule.pause_on_failure} failures in a row"
        ScheduleRepository(session).pause(due.id, because)
        return _record(session, due, fire_at, RunOutcome.SKIPPED, f"paused: {because}")
    if reason := _overlaps(schedule, tried):
        return _record(session, due, fire_at, RunOutcome.SKIPPED, reason)
    try:
        with savepoint(session):
            job_id, deployment_id = _enqueue(session, schedule)
    except OpsError as error:
        if isinstance(error, PermissionDenied):
            # Nobody would give these rights back for this schedule's sake.
            ScheduleRepository(session).pause(due.id, str(error))
        return _record(session, due, fire_at, RunOutcome.FAILED, str(error))
    return _record(session, due, fire_at, RunOutcome.ENQUEUED, None, job_id, deployment_id)


def _enqueue(session: Session, schedule: Schedule) -> tuple[UUID, int | None]:
    """The job, and the deployment where it is one, with the rights that the schedule's user has now."""
    rights.require(schedule.user, Role.OPERATOR, "scheduling")
    if schedule.task is None:
        made = deployments.create(
            session, user_id=schedule.user_id, application_id=schedule.application_id or 0,
            infrastructure_id=schedule.infrastructure_id or 0, version=schedule.version or "",
            priority=schedule.priority,
        )  # fmt: skip
        assert made.job_id is not None
        return made.job_id, made.id
    enqueued = JobRepository(session).enqueue(
        JobSpec(
            task=schedule.task,
            queue=schedule.queue or "",
            args=schedule.args,
            kwargs=schedule.kwargs,
            priority=schedule.priority,
            idempotent=schedule.idempotent,
            max_attempts=schedule.max_attempts,
            timeout_seconds=schedule.timeout_seconds,
            # Runs of one schedule line up, whatever else does.
            lock_key=f"schedule:{schedule.id}",
        )
    )
    return enqueued.id, None


def _overlaps(schedule: Schedule, tried: list[Tried]) -> str | None:
    """Why it must not enqueue more just now."""
    waiting = [run for run in tried if not run.is_over]
    if waiting and schedule.overlap is Overlap.SKIP:
        return f"its run of {_utc(waiting[0].fire_at)} is not over"
    if len(waiting) >= MOST_WAITING:
        return f"{len(waiting)} of its runs wait already"
    return None


def _fails_in_a_row(schedule: Schedule, tried: list[Tried]) -> bool:
    count = schedule.pause_on_failure
    since = schedule.resumed_at
    ended = [run for run in tried if run.is_over and (since is None or run.fire_at > since)]
    return count is not None and len(ended) >= count and all(run.has_failed for run in ended[:count])


def _record(
    session: Session, due: Due, fire_at: datetime, outcome: RunOutcome, reason: str | None,
    job_id: UUID | None = None, deployment_id: int | None = None,
) -> Fired:  # fmt: skip
    ScheduleRunRepository(session).add(
        ScheduleRun(
            schedule_id=due.id, fire_at=fire_at, fired_at=due.now, outcome=outcome,
            reason=clean(reason[:1000]) if reason else None, job_id=job_id, deployment_id=deployment_id,
        )
    )  # fmt: skip
    return Fired(due.id, fire_at, outcome, reason)


def _push(session: Session, due: Due, reason: str) -> Fired:
    """What went wrong stands in its history; it is looked at again later, and blocks nobody until then."""
    if not ScheduleRunRepository(session).has(due.id, due.fire_at):
        _record(session, due, due.fire_at, RunOutcome.FAILED, reason)
    ScheduleRepository(session).advance(due.id, due.fire_at, next_run_at=due.now + PUSH)
    return Fired(due.id, due.fire_at, RunOutcome.FAILED, reason)


def _may_pass(error: DBAPIError) -> bool:
    """A database that is away, out of something, or in whose way somebody stood."""
    state = getattr(error.orig, "sqlstate", None)
    return state is None or state[:2] in ("08", "40", "53", "55", "57")


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%F %T} UTC"
