"""Checks as people make, change, pause and remove them. What their runs do is in :mod:`db.services.check_runs`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func
from sqlalchemy.orm import Session

from db.errors import Conflict, InvalidInput, NotFound
from db.fields import check
from db.heartbeats import deadline
from db.models import MonitoringCheck, User
from db.probes import CheckSpec, HeartbeatCheck
from db.repositories import (
    ApplicationRepository,
    AuditLogRepository,
    CheckRepository,
    InfrastructureRepository,
    UserRepository,
)
from db.services import rights
from db.states import CheckKind, Role

_FIELDS = tuple(CheckSpec.model_fields)
_LINKS = ("application_id", "infrastructure_id")
#: Of these, one that changes makes what was seen before say nothing about what is seen from now on.
_TARGET = ("kind", "config")


def add(session: Session, *, owner_id: int, actor: User | None = None, **values: Any) -> MonitoringCheck:
    """Add a check: the fields of :class:`db.probes.CheckSpec`, ``application_id`` and ``infrastructure_id``. It opens
    the owner's secrets, and is due at once.

    Raises InvalidInput, AlreadyExists, NotFound, PermissionDenied.
    """
    rights.require_self_or(actor, owner_id, Role.ADMIN, "adding checks for others")
    rights.require(actor, Role.OPERATOR, "adding checks")
    links = _links(session, values)
    spec = check(CheckSpec, values)
    UserRepository(session).require(owner_id)
    checks = CheckRepository(session)
    token = uuid4() if spec.kind is CheckKind.HEARTBEAT else None
    made = checks.add(MonitoringCheck(owner_id=owner_id, ping_token=token, **links, **spec.model_dump()))
    checks.begin(made.id, _first_due(made))
    return checks.anew(made.id)


def edit(session: Session, *, found: MonitoringCheck, actor: User | None = None, **values: Any) -> MonitoringCheck:
    """Change some fields; the whole is checked again. One that looks at something else now starts anew.

    Its kind stays. The owner's secrets are opened by it, so whoever is not the owner must be an admin. Raises
    InvalidInput, AlreadyExists, Conflict, NotFound, PermissionDenied.
    """
    rights.require_self_or(actor, found.owner_id, Role.ADMIN, "editing the checks of others")
    rights.require(actor, Role.OPERATOR, "editing checks")
    if values.get("kind", found.kind) != found.kind:
        raise InvalidInput("the kind of a check stays; remove it and add another")
    links = _links(session, values)
    spec = check(CheckSpec, {name: getattr(found, name) for name in _FIELDS} | values)
    checks = CheckRepository(session)
    before = {name: getattr(found, name) for name in _TARGET}
    checks.change(found, **links, **spec.model_dump())
    if any(getattr(found, name) != was for name, was in before.items()) and found.paused_at is None:
        checks.restart(found.id, _first_due(found))
    elif "interval_seconds" in values:
        checks.run_now(found.id)  # else the next run would come by the interval before
    return checks.anew(found.id)


def pause(session: Session, *, found: MonitoringCheck, actor: User | None = None) -> MonitoringCheck:
    """Run it no more until it is resumed; a result that is under way counts no more. Raises Conflict,
    PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "pausing checks")
    if found.paused_at is not None:
        raise Conflict(f"check {found.name} is paused already")
    checks = CheckRepository(session)
    checks.change(found, paused_at=func.statement_timestamp())
    checks.pause(found.id)
    return checks.anew(found.id)


def resume(session: Session, *, found: MonitoringCheck, actor: User | None = None) -> MonitoringCheck:
    """Run it again, from nothing known. Raises Conflict, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "resuming checks")
    if found.paused_at is None:
        raise Conflict(f"check {found.name} is not paused")
    checks = CheckRepository(session)
    checks.change(found, paused_at=None)
    checks.restart(found.id, _first_due(found))
    return checks.anew(found.id)


def run_now(session: Session, *, found: MonitoringCheck, actor: User | None = None) -> None:
    """Make it due now. Raises Conflict where it is paused; a run that is in flight will do. Raises PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "running checks")
    if found.paused_at is not None:
        raise Conflict(f"check {found.name} is paused", hint=f"ops check resume {found.name}")
    CheckRepository(session).run_now(found.id)


def remove(session: Session, *, found: MonitoringCheck, actor: User | None = None) -> None:
    """Remove a check with its history. Raises Conflict, PermissionDenied."""
    rights.require_self_or(actor, found.owner_id, Role.ADMIN, "removing the checks of others")
    rights.require(actor, Role.OPERATOR, "removing checks")
    CheckRepository(session).delete(found)


def names(session: Session, *, found: MonitoringCheck) -> dict[str, str | None]:
    """What it looks at besides its target, by name: ``application``, ``infrastructure``."""
    app, place = found.application_id, found.infrastructure_id
    return {
        "application": None if app is None else ApplicationRepository(session).require(app).name,
        "infrastructure": None if place is None else InfrastructureRepository(session).require(place).name,
    }


def show_token(session: Session, *, found: MonitoringCheck, actor: User | None = None) -> UUID:
    """A heartbeat's token, for whoever sets up what reports: it may, by that alone. That it was shown is recorded.
    Raises InvalidInput, PermissionDenied."""
    rights.require_self_or(actor, found.owner_id, Role.ADMIN, "looking at the tokens of others")
    rights.require(actor, Role.OPERATOR, "looking at a heartbeat's token")
    if found.ping_token is None:
        raise InvalidInput(f"check {found.name} is no heartbeat")
    AuditLogRepository(session).add("check.token_shown", "check", str(found.id), {"name": found.name})
    return found.ping_token


def ping(session: Session, *, found: MonitoringCheck, signal: str = "ok", actor: User | None = None) -> None:
    """Report for a heartbeat: ``ok``, ``fail`` or ``start``. Raises InvalidInput, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "reporting for heartbeats")
    if found.ping_token is None:
        raise InvalidInput(f"check {found.name} is no heartbeat")
    beat(session, token=found.ping_token, signal=signal)


def beat(session: Session, *, token: UUID, signal: str = "ok") -> int:
    """What ``/ping/<token>`` does: whoever knows the token may. Raises NotFound, InvalidInput."""
    if signal not in ("ok", "fail", "start"):
        raise InvalidInput("a heartbeat reports ok, fail or start")
    reported = CheckRepository(session).beat(token, signal)
    if reported is None:
        raise NotFound("there is no such heartbeat")
    return reported


def _first_due(found: MonitoringCheck) -> float:
    """In how many seconds a check runs first: at once, but for one that has a while to report."""
    if found.kind is not CheckKind.HEARTBEAT:
        return 0.0
    now = datetime.now(UTC)
    return (deadline(check(HeartbeatCheck, found.config), now) - now).total_seconds()


def _links(session: Session, values: dict[str, Any]) -> dict[str, int | None]:
    """The links among the values, taken out of them. Raises NotFound, InvalidInput."""
    links = {name: values.pop(name) for name in _LINKS if name in values}
    if links.get("application_id") is not None:
        ApplicationRepository(session).require(links["application_id"])
    if links.get("infrastructure_id") is not None:
        InfrastructureRepository(session).require(links["infrastructure_id"])
    return links
