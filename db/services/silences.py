"""Silences: alerts that nobody wants to be told of for a while. Maintenance: what somebody works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db.alerting import matches
from db.channels import MaintenanceSpec, SilenceSpec
from db.errors import Conflict, InvalidInput
from db.fields import check
from db.models import MaintenanceWindow, MonitoringAlert, Silence, User
from db.repositories import AlertEventRepository, MaintenanceWindowRepository, SilenceRepository
from db.repositories.silences import active
from db.services import rights
from db.states import AlertEventKind, Role

LONGEST = timedelta(days=90)


@dataclass(frozen=True)
class Windows:
    """What is silenced and what is worked on now."""

    silenced: Sequence[Mapping[str, str]] = ()
    maintained: Sequence[Mapping[str, str]] = ()

    def is_silenced(self, labels: Mapping[str, str]) -> bool:
        return any(matches(each, labels) for each in self.silenced)

    def is_maintained(self, labels: Mapping[str, str]) -> bool:
        return any(matches(each, labels) for each in self.maintained)


def current(session: Session) -> Windows:
    """What holds now, by the database's clock."""
    silenced, maintained = active(session)
    return Windows([each.matchers for each in silenced], [each.matchers for each in maintained])


def was_maintained(session: Session, labels: Mapping[str, str], moment: datetime) -> bool:
    """Whether somebody worked on what has these labels, at a time."""
    found = MaintenanceWindowRepository(session).between(moment, moment + timedelta(microseconds=1))
    return any(matches(each.matchers, labels) for each in found)


def silence(
    session: Session,
    *,
    matchers: Mapping[str, str],
    ends_at: datetime,
    starts_at: datetime | None = None,
    comment: str | None = None,
    actor: User | None = None,
) -> Silence:
    """Tell nobody of alerts that match, until a time. Raises InvalidInput, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "silencing alerts")
    starts_at = starts_at or datetime.now(UTC)
    spec = check(SilenceSpec, {"matchers": dict(matchers), "comment": comment})
    _span(starts_at, ends_at)
    return SilenceRepository(session).add(
        Silence(
            matchers=spec.matchers, comment=spec.comment, starts_at=starts_at, ends_at=ends_at,
            created_by_id=actor.id if actor else None,
        )
    )  # fmt: skip


def silence_alert(
    session: Session, *, alert: MonitoringAlert, ends_at: datetime, comment: str | None = None,
    actor: User | None = None,
) -> Silence:  # fmt: skip
    """Tell nobody of this alert, nor of another one with the same type and labels, until a time. Raises InvalidInput,
    PermissionDenied."""
    matchers = {name: _literal(str(value)) for name, value in alert.labels.items()}
    matchers["alert_type"] = alert.alert_type
    made = silence(session, matchers=matchers, ends_at=ends_at, comment=comment, actor=actor)
    session.flush()
    said = f"until {ends_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC (silence {made.id})"
    AlertEventRepository(session).add(alert.id, AlertEventKind.SILENCED, f"{said}: {comment}" if comment else said)
    return made


def end_silence(session: Session, *, silence_id: int, actor: User | None = None) -> Silence:
    """Be told again. Raises NotFound, Conflict, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "silencing alerts")
    silences = SilenceRepository(session)
    silences.require(silence_id)
    found = silences.end(silence_id)
    if found is None:
        raise Conflict(f"silence {silence_id} has ended already")
    return found


def maintain(
    session: Session,
    *,
    title: str,
    matchers: Mapping[str, str],
    ends_at: datetime,
    starts_at: datetime | None = None,
    actor: User | None = None,
) -> MaintenanceWindow:
    """Raise and resolve nothing of what matches until a time. Raises InvalidInput, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "planning maintenance")
    starts_at = starts_at or datetime.now(UTC)
    spec = check(MaintenanceSpec, {"matchers": dict(matchers), "title": title})
    _span(starts_at, ends_at)
    return MaintenanceWindowRepository(session).add(
        MaintenanceWindow(
            title=spec.title, matchers=spec.matchers, starts_at=starts_at, ends_at=ends_at,
            created_by_id=actor.id if actor else None,
        )
    )  # fmt: skip


def end_maintenance(session: Session, *, window_id: int, actor: User | None = None) -> MaintenanceWindow:
    """The work is done: decide by what is so now. Raises NotFound, Conflict, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "planning maintenance")
    windows = MaintenanceWindowRepository(session)
    windows.require(window_id)
    found = windows.end(window_id)
    if found is None:
        raise Conflict(f"maintenance window {window_id} has ended already")
    return found


def _span(starts_at: datetime, ends_at: datetime) -> None:
    if ends_at <= max(starts_at, datetime.now(UTC)):
        raise InvalidInput("it must end, and later than it begins and than now")
    if ends_at - starts_at > LONGEST:
        raise InvalidInput(f"it may last {LONGEST.days} days at most")


def _literal(value: str) -> str:
    """A value in which no character stands for others."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in value)
