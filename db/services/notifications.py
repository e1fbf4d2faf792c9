"""Telling people of alerts: what is to be told, gathered into messages, each sent by a durable job.

A tick calls :func:`dispatch`, which goes by what is and not by what has changed: one that was lost, doubled or cut off
is made up for by the next. Each (alert, transition, channel) is one row, however often it is asked for; the rows of a
group become one message, whose job's id is the message's id, the same at every attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from db.alerting import Notice, Route, Telling, plan
from db.connection import apply_context
from db.models import MonitoringAlert, NotificationRoute
from db.repositories import (
    AlertEventRepository,
    ChannelRepository,
    JobRepository,
    JobSpec,
    MonitoringAlertRepository,
    NotificationRepository,
    RouteRepository,
)
from db.repositories.alerts import DISPATCH
from db.services import channels, silences
from db.services.evaluation import labels_of
from db.states import AlertEventKind, AlertStatus, ChannelKind, NotificationState, Transition

SEND_TASK = "tasks.notifications.send"
QUEUE = "control"
#: Alerts in one message at most.
MOST = 100
MINUTE = timedelta(minutes=1)
#: A day of tries, the last ones five minutes apart.
ATTEMPTS, TIMEOUT_SECONDS, LEASE_SECONDS = 300, 120, 20.0


@dataclass(frozen=True, slots=True)
class Item:
    """One alert in a message: what happened, and the alert as it is now."""

    transition: Transition
    alert: dict[str, Any]


@dataclass(frozen=True)
class Delivery:
    """A message and the way it goes. Lives in memory only; its repr shows nothing of the configuration."""

    id: UUID
    channel_id: int
    channel: str
    kind: ChannelKind
    config: dict[str, Any] = field(repr=False)
    items: tuple[Item, ...]


def dispatch(session: Session) -> dict[str, Any] | None:
    """Make notices of what is to be told, and messages of what has waited long enough. Answers the counts, or None when
    nothing changed or somebody else is at it."""
    if not MonitoringAlertRepository(session).take_turn(DISPATCH):
        return None
    apply_context(session)
    done = {"notices": _plan(session), "messages": _send_due(session), "failed": _fail(session)}
    return {name: count for name, count in done.items() if count} or None


def _plan(session: Session) -> int:
    alerts = MonitoringAlertRepository(session)
    unsettled = alerts.unsettled()
    if not unsettled:
        return 0
    enabled = ChannelRepository(session).enabled()
    routes = [_route(each) for each in RouteRepository(session).all_() if each.channel_id in enabled]
    told = NotificationRepository(session).told([alert.id for alert in unsettled])
    windows, now = silences.current(session), alerts.now()
    notices: list[Notice] = []
    for alert in unsettled:
        labels = labels_of(alert)
        telling = Telling(
            alert.id, alert.status, alert.severity, labels, alert.acknowledged_at is not None,
            windows.is_silenced(labels),
        )  # fmt: skip
        notices += plan(telling, routes, told.get(alert.id, {}), now)
    added = NotificationRepository(session).add_all(notices)
    if over := [alert.id for alert in unsettled if alert.status is AlertStatus.RESOLVED]:
        alerts.settle(over)
    return added


def _route(row: NotificationRoute) -> Route:
    return Route(
        row.id, row.channel_id, row.severity, row.matchers, tuple(row.group_by), timedelta(seconds=row.wait_seconds),
        timedelta(seconds=row.repeat_seconds),
    )  # fmt: skip


def _send_due(session: Session) -> int:
    """A job for each group that has waited long enough, as many as the channel's limit lets through; the others wait
    on, and gather."""
    notifications = NotificationRepository(session)
    groups = notifications.due_groups()
    if not groups:
        return 0
    limits = ChannelRepository(session).enabled()
    lately = notifications.lately(MINUTE, limits)
    room = {channel_id: limit - lately.get(channel_id, 0) for channel_id, limit in limits.items()}
    jobs: list[JobSpec] = []
    for group in groups:
        if room.get(group.channel_id, 0) <= 0:
            continue
        room[group.channel_id] -= 1
        job = JobSpec(
            task=SEND_TASK, queue=QUEUE, id=uuid4(), priority=2, lock_key=f"channel:{group.channel_id}",
            idempotent=True, max_attempts=ATTEMPTS, max_rescues=ATTEMPTS, timeout_seconds=TIMEOUT_SECONDS,
            lease_seconds=LEASE_SECONDS,
        )  # fmt: skip
        assert job.id is not None
        JobRepository(session).enqueue(job)
        notifications.queue(group, job.id, MOST)
        jobs.append(job)
    return len(jobs)


def _fail(session: Session) -> int:
    failed = NotificationRepository(session).fail_orphans()
    AlertEventRepository(session).add(sorted(set(failed)), AlertEventKind.NOT_NOTIFIED, "its job has ended")
    return len(failed)


def open_(session: Session, *, job_id: UUID) -> Delivery | None:
    """What a job is to send, with the channel's configuration open; None: nothing is left to send. Raises
    DecryptionError."""
    rows = NotificationRepository(session).of_job(job_id)
    if not rows:
        return None
    channel = ChannelRepository(session).require(rows[0][0].channel_id)
    if channel.disabled_at is not None:
        _finish(session, job_id, NotificationState.FAILED, channel.name, "the channel is disabled")
        return None
    items = tuple(Item(notification.transition, view(alert)) for notification, alert in rows)
    return Delivery(job_id, channel.id, channel.name, channel.kind, channels.open_config(channel), items)


def sent(session: Session, *, delivery: Delivery) -> int:
    """The message was taken. Answers how many notices it held."""
    return _finish(session, delivery.id, NotificationState.SENT, delivery.channel, None)


def postponed(session: Session, *, delivery: Delivery, error: str) -> None:
    """It was not taken now; it is tried again."""
    NotificationRepository(session).postpone(delivery.id, error[:500])


def refused(session: Session, *, delivery: Delivery, error: str) -> None:
    """It will never be taken like this: the channel is disabled until a person has looked at it, and an alert tells of
    that by the others."""
    ChannelRepository(session).disable(delivery.channel_id, error[:500], is_broken=True)
    _finish(session, delivery.id, NotificationState.FAILED, delivery.channel, error[:500])


def _finish(session: Session, job_id: UUID, state: NotificationState, channel: str, error: str | None) -> int:
    alerts = NotificationRepository(session).finish(job_id, state, error)
    kind = AlertEventKind.NOTIFIED if state is NotificationState.SENT else AlertEventKind.NOT_NOTIFIED
    said = f"by {channel}" if error is None else f"by {channel}: {error}"
    AlertEventRepository(session).add(sorted(set(alerts)), kind, said)
    return len(alerts)


def view(alert: MonitoringAlert) -> dict[str, Any]:
    """An alert as it is told: plain JSON."""
    return {
        "id": alert.id, "fingerprint": alert.fingerprint, "alert_type": alert.alert_type,
        "severity": alert.severity.value, "status": alert.status.value, "title": alert.title, "message": alert.message,
        "labels": dict(alert.labels), "value": alert.current_value, "threshold": alert.threshold_value,
        "deployment_id": alert.deployment_id, "started_at": _iso(alert.started_at), "fired_at": _iso(alert.fired_at),
        "resolved_at": _iso(alert.resolved_at),
        "acknowledged_at": _iso(alert.acknowledged_at),
    }  # fmt: skip


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


def sample(channel: str) -> Sequence[Item]:
    """What `ops channel test` sends."""
    now = _iso(datetime.now(UTC))
    alert = {
        "id": 0, "fingerprint": "test", "alert_type": "test", "severity": "low", "status": "firing",
        "title": f"a test of the channel {channel}", "message": "nothing is wrong", "labels": {}, "value": None,
        "threshold": None, "deployment_id": None, "started_at": now, "fired_at": now, "resolved_at": None,
        "acknowledged_at": None,
    }  # fmt: skip
    return (Item(Transition.RAISED, alert),)
