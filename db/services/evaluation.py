"""What is wrong, and what follows: the only place that raises and resolves alerts.

A tick calls :func:`evaluate` with sources. Each says what is wrong now of the kinds of alert that it looks after, and
what it could not look at; `db.alerting` says what follows; each answer is applied as a compare-and-set, so that a
person who acts meanwhile is not overruled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.orm import Session

from db.alerting import Condition, Known, Step, decide
from db.connection import apply_context, savepoint
from db.models import MonitoringAlert
from db.repositories import AlertEventRepository, MonitoringAlertRepository
from db.repositories.alerts import EVALUATION
from db.services import causes, silences
from db.services.silences import Windows
from db.states import AlertEventKind, AlertStatus

log = structlog.get_logger()

Alerts = Mapping[str, MonitoringAlert]


@dataclass(frozen=True)
class Observation:
    """What a source has seen. ``types``: the kinds of alert it looks after; ``held``: fingerprints that it could not
    look at, or not yet decide on, which stay as they are; ``past``: what was wrong since the last look and is over, in
    order; ``blind``: it could look at nothing."""

    types: frozenset[str]
    conditions: Sequence[Condition] = ()
    held: frozenset[str] = frozenset()
    past: Sequence[Condition] = ()
    blind: bool = False


Source = Callable[[Session, Alerts], Observation]


def evaluate(session: Session, sources: Sequence[Source]) -> dict[str, Any] | None:
    """Raise, resolve and change alerts by what these sources see. Answers the counts, or None when nothing changed or
    somebody else is at it."""
    alerts = MonitoringAlertRepository(session)
    if not alerts.take_turn(EVALUATION):
        return None
    apply_context(session)
    known: dict[str, MonitoringAlert] = {alert.fingerprint: alert for alert in alerts.uncleared()}
    run = _Run(session, alerts.now(), silences.current(session))
    for source in sources:
        _look(session, source, known, run)
    return {name: count for name, count in run.counts.items() if count} or None


def _look(session: Session, source: Source, known: dict[str, MonitoringAlert], run: _Run) -> None:
    try:
        with savepoint(session):
            seen = source(session, known)
    except Exception as error:  # noqa: BLE001 - one source that fails must not end what the others see
        log.warning("alert_source_failed", source=source.__module__, error=f"{type(error).__name__}: {error}"[:200])
        return
    if seen.blind:
        return
    for over in seen.past:
        if over.fingerprint not in seen.held:
            run.make_up_for(known, over)
    conditions = {condition.fingerprint: condition for condition in seen.conditions}
    of_it = [fingerprint for fingerprint, alert in known.items() if alert.alert_type in seen.types]
    for fingerprint in sorted({*conditions, *of_it} - seen.held):
        run.settle(known.get(fingerprint), conditions.get(fingerprint))


@dataclass
class _Run:
    """One evaluation: applies what follows, and counts it."""

    session: Session
    now: datetime
    windows: Windows
    counts: dict[str, int] = field(default_factory=lambda: {"raised": 0, "resolved": 0, "pending": 0})

    def settle(self, alert: MonitoringAlert | None, seen: Condition | None) -> None:
        """Do what follows for one fingerprint, unless somebody works on it."""
        labels = labels_of(alert) if seen is None and alert is not None else labels_of(seen)
        if self.windows.is_maintained(labels):
            return
        known = _known(alert) if alert is not None else None
        for step in decide(known, seen, self.now):
            if step in (Step.BEGIN, Step.RAISE):
                assert seen is not None
                self._open(step, seen)
            elif alert is not None:
                self._apply(step, alert, seen)

    def make_up_for(self, known: dict[str, MonitoringAlert], over: Condition) -> None:
        """What began and ended between two looks is raised and resolved at once, if no alert tells of it yet."""
        alert = known.get(over.fingerprint)
        if alert is not None and alert.episode == over.episode:
            return  # it is over, as the conditions show
        if MonitoringAlertRepository(self.session).has_episode(over.fingerprint, over.episode):
            return
        if alert is not None:
            self.settle(known.pop(over.fingerprint), None)
        if (alert_id := self._open(Step.RAISE, over)) is not None:
            MonitoringAlertRepository(self.session).end(alert_id)
            self._tell(alert_id, AlertEventKind.RESOLVED, "it was over before anybody looked")
            self.counts["resolved"] += 1

    def _open(self, step: Step, seen: Condition) -> int | None:
        cause = causes.find(self.session, seen, self.now)
        status = AlertStatus.FIRING if step is Step.RAISE else AlertStatus.PENDING
        values = _values(seen) | {
            "fingerprint": seen.fingerprint, "alert_type": seen.alert_type, "labels": dict(seen.labels),
            "application_id": seen.application_id, "infrastructure_id": seen.infrastructure_id,
            "status": status, "started_at": seen.since or self.now,
            "fired_at": self.now if status is AlertStatus.FIRING else None,
        }  # fmt: skip
        if cause is not None:
            values |= {"deployment_id": cause.deployment_id}
        alert_id = MonitoringAlertRepository(self.session).open_one(values)
        if alert_id is None:
            return None
        said = "; ".join(filter(None, [seen.message, cause.says if cause else None])) or None
        kind = AlertEventKind.RAISED if status is AlertStatus.FIRING else AlertEventKind.PENDING
        self._tell(alert_id, kind, said)
        self.counts["raised" if status is AlertStatus.FIRING else "pending"] += 1
        return alert_id

    def _apply(self, step: Step, alert: MonitoringAlert, seen: Condition | None) -> None:
        alerts = MonitoringAlertRepository(self.session)
        match step:
            case Step.CHANGE:
                assert seen is not None
                was = (alert.severity, alert.title)
                if alerts.tell(alert.id, _changes(seen, alert)) and was != (seen.severity, seen.title):
                    self._tell(alert.id, AlertEventKind.CHANGED, f"{seen.severity.value}: {seen.title}")
            case Step.FIRE:
                if alerts.fire(alert.id):
                    self._tell(alert.id, AlertEventKind.RAISED, alert.message)
                    self.counts["raised"] += 1
            case Step.WITHDRAW:
                alerts.withdraw(alert.id)
            case Step.RESOLVE:
                if alerts.end(alert.id):
                    self._tell(alert.id, AlertEventKind.RESOLVED, "it is over")
                    self.counts["resolved"] += 1
            case _:
                alerts.clear(alert.id)

    def _tell(self, alert_id: int, kind: AlertEventKind, message: str | None) -> None:
        AlertEventRepository(self.session).add(alert_id, kind, message)


def labels_of(thing: MonitoringAlert | Condition | None) -> dict[str, str]:
    """What matchers are held against: labels, and the alert's type and severity."""
    if thing is None:
        return {}
    labels = {str(name): str(value) for name, value in thing.labels.items()}
    return labels | {"alert_type": thing.alert_type, "severity": thing.severity.value}


def _known(alert: MonitoringAlert) -> Known:
    return Known(
        alert.id, alert.status, alert.episode or "", alert.started_at or alert.created_at, alert.severity, alert.title,
        alert.message, alert.current_value, alert.deployment_id, alert.updated_at,
    )  # fmt: skip


def _values(seen: Condition) -> dict[str, Any]:
    """What an alert says, of a condition."""
    return {
        "severity": seen.severity, "title": seen.title, "message": seen.message, "episode": seen.episode or None,
        "threshold_value": seen.threshold_value, "current_value": seen.current_value,
        "deployment_id": seen.deployment_id,
    }  # fmt: skip


def _changes(seen: Condition, alert: MonitoringAlert) -> dict[str, Any]:
    values = _values(seen)
    if seen.deployment_id is None:
        values["deployment_id"] = alert.deployment_id  # that which came shortly before it stays
    return values
