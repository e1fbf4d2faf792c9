"""Schedules: written down, changed, paused, resumed, run by hand. What fires them is in :mod:`db.services.firing`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import recurrence
from db.errors import Conflict, InvalidInput
from db.models import Schedule, ScheduleRun, User
from db.repositories import (
    ApplicationRepository,
    InfrastructureRepository,
    ScheduleRepository,
    UserRepository,
)
from db.schedule_specs import ScheduledTask, ScheduleSpec
from db.services import firing, rights
from db.specs import check, storable
from db.states import Role, ScheduleKind

_TIMING = ("cron", "every", "once")
_WORK = ("deploy", "task")
_TASK_FIELDS = ("args", "kwargs", "idempotent", "max_attempts", "timeout_seconds")
#: What stands in a task's columns where a deployment is enqueued.
_NO_TASK = {"task": None, "queue": None} | ScheduledTask(name="-", queue="-").model_dump(include=set(_TASK_FIELDS))


def register(
    session: Session, *, user_id: int, actor: User | None = None, now: datetime | None = None, **values: Any
) -> Schedule:
    """Add a schedule: ``name`` and the other fields of :class:`ScheduleSpec`. It acts with the rights of the user.

    ``now`` stands in for the database's clock. Raises InvalidInput, AlreadyExists, NotFound, PermissionDenied.
    """
    rights.require_self_or(actor, user_id, Role.ADMIN, "scheduling for others")
    user = UserRepository(session).require(user_id)
    rights.require(user, Role.OPERATOR, "scheduling")
    spec = check(ScheduleSpec, values)
    now = now or _clock(session)
    columns = _timing(spec, now) | _work(session, spec)
    made = Schedule(name=spec.name, user_id=user_id, **columns, **_manner(spec))
    made.next_run_at = _next(made, now)
    ScheduleRepository(session).add(made)
    return ScheduleRepository(session).require_by_name(spec.name)


def edit(
    session: Session, *, schedule: Schedule, actor: User | None = None, now: datetime | None = None, **values: Any
) -> Schedule:
    """Change some fields; the whole is checked again. Another timing counts from now; a paused one stays paused.

    Raises InvalidInput, AlreadyExists, NotFound, Conflict, PermissionDenied.
    """
    _owned(schedule, actor, "editing schedules of others")
    current = values_of(schedule)
    for choices in (_TIMING, _WORK):
        if any(values.get(each) is not None for each in choices):
            current = {name: value for name, value in current.items() if name not in choices}
    if values.get("every") or values.get("once"):
        current.pop("timezone", None)
    spec = check(ScheduleSpec, current | values)
    now = now or _clock(session)
    columns = _work(session, spec) | _manner(spec) | {"name": spec.name}
    timing = _timing(spec, now)
    if any(getattr(schedule, name) != value for name, value in timing.items() if name != "anchor_at"):
        made = Schedule(**timing)
        columns |= timing | {"next_run_at": None if schedule.paused_at else _next(made, now)}
    ScheduleRepository(session).change(schedule, **columns)
    session.expire(schedule)
    return ScheduleRepository(session).require_by_name(spec.name)


def pause(session: Session, *, schedule: Schedule, reason: str | None = None, actor: User | None = None) -> None:
    """Fire it no more until it is resumed; what it has enqueued goes on. Any operator may. Raises Conflict,
    PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "pausing schedules")
    said = storable(reason, "a reason")[:500] if reason else "asked for"
    if not ScheduleRepository(session).pause(schedule.id, said):
        raise Conflict(f"schedule {schedule.name} is paused already")
    session.refresh(schedule)


def resume(session: Session, *, schedule: Schedule, actor: User | None = None, now: datetime | None = None) -> Schedule:
    """Fire it again, from its next time on: what passed meanwhile is not made up for, and failures before count no
    more. Raises Conflict, PermissionDenied."""
    _owned(schedule, actor, "resuming schedules of others")
    if schedule.paused_at is None:
        raise Conflict(f"schedule {schedule.name} is not paused")
    now = now or _clock(session)
    return ScheduleRepository(session).change(
        schedule, paused_at=None, paused_because=None, resumed_at=now, next_run_at=_next(schedule, now)
    )


def run_now(session: Session, *, schedule: Schedule, actor: User | None = None) -> ScheduleRun:
    """Enqueue what it enqueues, once, beside its own times, also while it is paused.

    Raises Conflict where its run before is not over and it skips then; what the deployment raises; PermissionDenied.
    """
    _owned(schedule, actor, "running schedules of others")
    ScheduleRepository(session).lock(schedule.id)
    return firing.enqueue_by_hand(session, schedule)


def remove(session: Session, *, schedule: Schedule, actor: User | None = None) -> None:
    """Remove it with its history; what it has enqueued goes on. Raises Conflict, PermissionDenied."""
    _owned(schedule, actor, "removing schedules of others")
    ScheduleRepository(session).delete(schedule)


def upcoming(session: Session, *, schedule: Schedule, count: int, now: datetime | None = None) -> list[datetime]:
    """Its next times; none while it is paused. Raises InvalidInput where this host cannot read its times."""
    if schedule.next_run_at is None or count < 1:
        return []
    try:
        later = recurrence.upcoming(schedule.recurrence, max(schedule.next_run_at, now or _clock(session)), count - 1)
    except ValueError as error:
        raise InvalidInput(f"schedule {schedule.name}: {error}") from None
    return [schedule.next_run_at, *later]


def values_of(schedule: Schedule) -> dict[str, Any]:
    """The fields of :class:`ScheduleSpec` that make this schedule, without those that are as by default; its names
    are loaded."""
    values: dict[str, Any] = {"name": schedule.name}
    if schedule.kind is ScheduleKind.CRON:
        values |= {"cron": schedule.cron, "timezone": schedule.timezone}
    elif schedule.kind is ScheduleKind.INTERVAL:
        values["every"] = recurrence.duration(schedule.every_seconds or 0)
    else:
        values["once"] = schedule.once_at.isoformat() if schedule.once_at else None
    if schedule.task is None:
        assert schedule.application is not None
        assert schedule.infrastructure is not None
        values["deploy"] = {
            "application": schedule.application.name,
            "infrastructure": schedule.infrastructure.name,
            "version": schedule.version,
            "priority": schedule.priority,
        }
    else:
        given = {name: getattr(schedule, name) for name in (*_TASK_FIELDS, "queue", "priority")}
        values["task"] = {"name": schedule.task} | given
    values |= {name: getattr(schedule, name) for name in ("overlap", "catch_up", "pause_on_failure")}
    return without_defaults(values)


def without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The same schedule in fewer words. Raises InvalidInput for what is none."""
    return check(ScheduleSpec, values).model_dump(mode="json", exclude_defaults=True)


def _owned(schedule: Schedule, actor: User | None, what: str) -> None:
    """It acts with its user's rights, so nobody else but an admin says what it does."""
    rights.require(actor, Role.OPERATOR, "scheduling")
    rights.require_self_or(actor, schedule.user_id, Role.ADMIN, what)


def _timing(spec: ScheduleSpec, now: datetime) -> dict[str, Any]:
    kind = ScheduleKind.CRON if spec.cron else ScheduleKind.INTERVAL if spec.every else ScheduleKind.ONCE
    return {
        "kind": kind,
        "cron": spec.cron,
        "timezone": spec.timezone,
        "every_seconds": recurrence.seconds(spec.every) if spec.every else None,
        "anchor_at": now,
        "once_at": spec.once_at,
    }


def _work(session: Session, spec: ScheduleSpec) -> dict[str, Any]:
    if spec.task is not None:
        task = spec.task.model_dump(mode="json")
        columns = {"task": task.pop("name"), **task}
        return columns | {"application_id": None, "infrastructure_id": None, "version": None}
    assert spec.deploy is not None
    return {
        "application_id": ApplicationRepository(session).require_by_name(spec.deploy.application).id,
        "infrastructure_id": InfrastructureRepository(session).require_by_name(spec.deploy.infrastructure).id,
        "version": spec.deploy.version,
        "priority": spec.deploy.priority,
    } | _NO_TASK


def _manner(spec: ScheduleSpec) -> dict[str, Any]:
    return {"overlap": spec.overlap, "catch_up": spec.catch_up, "pause_on_failure": spec.pause_on_failure}


def _next(schedule: Schedule, now: datetime) -> datetime | None:
    """Its next time. Raises InvalidInput where there is none: it would never do anything."""
    try:
        found = schedule.recurrence.after(now)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if found is None:
        raise InvalidInput("once: this time has passed" if schedule.once_at else "no time comes any more")
    return found


def _clock(session: Session) -> datetime:
    """The database's time."""
    found = session.scalar(select(func.clock_timestamp()))
    assert isinstance(found, datetime)
    return found
