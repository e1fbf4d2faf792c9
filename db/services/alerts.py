"""What people do with alerts. They are raised by a tick (`db.services.evaluation`), nowhere else."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field
from sqlalchemy.orm import Session

from db.errors import Conflict
from db.fields import Spec, Value, check
from db.models import MonitoringAlert, Silence, User
from db.repositories import AlertEventRepository, MonitoringAlertRepository
from db.services import rights, silences
from db.states import AlertEventKind, Role


class NoteSpec(Spec):
    note: Annotated[Value, Field(min_length=1, max_length=4000)]


def acknowledge(session: Session, *, alert_id: int, actor: User | None = None) -> MonitoringAlert:
    """Say that somebody looks after it: it is not repeated any more. Raises NotFound, Conflict (it is resolved, or
    somebody was faster), PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "acknowledging alerts")
    alerts = MonitoringAlertRepository(session)
    alerts.require(alert_id)
    found = alerts.acknowledge(alert_id, actor.id if actor else None)
    if found is None:
        raise Conflict(f"alert {alert_id} is resolved or acknowledged already")
    _tell(session, alert_id, AlertEventKind.ACKNOWLEDGED)
    return found


def assign(session: Session, *, alert_id: int, user: User | None, actor: User | None = None) -> MonitoringAlert:
    """Say who is to look after it; None: nobody. Raises NotFound, Conflict (it is resolved), PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "assigning alerts")
    if user is not None and not user.is_active:
        raise Conflict(f"{user.username} is disabled")
    alerts = MonitoringAlertRepository(session)
    alerts.require(alert_id)
    found = alerts.assign(alert_id, user.id if user else None)
    if found is None:
        raise Conflict(f"alert {alert_id} is resolved already")
    _tell(session, alert_id, AlertEventKind.ASSIGNED, f"to {user.username}" if user else "to nobody")
    return found


def note(session: Session, *, alert_id: int, text: str, actor: User | None = None) -> None:
    """Write a line into its timeline. Raises NotFound, InvalidInput, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "writing notes")
    MonitoringAlertRepository(session).require(alert_id)
    _tell(session, alert_id, AlertEventKind.NOTE, check(NoteSpec, {"note": text}).note)


def silence(
    session: Session, *, alert_id: int, ends_at: datetime, comment: str | None = None, actor: User | None = None
) -> Silence:
    """Tell nobody of it until a time. Raises NotFound, InvalidInput, PermissionDenied."""
    alert = MonitoringAlertRepository(session).require(alert_id)
    return silences.silence_alert(session, alert=alert, ends_at=ends_at, comment=comment, actor=actor)


def resolve(session: Session, *, alert_id: int, actor: User | None = None) -> MonitoringAlert:
    """Close it by hand; it is raised anew when it fails again, and not while it goes on. Raises NotFound, Conflict,
    PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "resolving alerts")
    alerts = MonitoringAlertRepository(session)
    alerts.require(alert_id)
    found = alerts.resolve(alert_id, actor.id if actor else None)
    if found is None:
        raise Conflict(f"alert {alert_id} is resolved already")
    _tell(session, alert_id, AlertEventKind.RESOLVED, "by hand")
    return found


def _tell(session: Session, alert_id: int, kind: AlertEventKind, message: str | None = None) -> None:
    AlertEventRepository(session).add(alert_id, kind, message)
