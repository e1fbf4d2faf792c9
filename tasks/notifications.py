"""Tells people of alerts: a tick that makes messages, and the durable task that sends one."""

from __future__ import annotations

import time
from typing import Any

import structlog
from celery import shared_task

from db.connection import get_db_session
from db.errors import DatabaseUnavailable
from db.services import notifications
from db.services.notifications import ATTEMPTS, LEASE_SECONDS, SEND_TASK, TIMEOUT_SECONDS, Delivery
from tasks import channels
from tasks.channels import ChannelError, compose
from tasks.ticks import tick

log = structlog.get_logger()

#: The pause after a failure, doubled each time, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
#: A message that was taken is sent again unless that gets recorded: try for a while.
RECORD_PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)


@shared_task(name="tasks.notifications.dispatch")
def dispatch() -> dict[str, Any] | None:
    """Make notices of what is to be told, and messages of what has waited long enough."""
    return tick("notifications", 5.0, notifications.dispatch)


@shared_task(
    bind=True, name=SEND_TASK, durable=True, idempotent=True, max_attempts=ATTEMPTS, max_rescues=ATTEMPTS,
    timeout=TIMEOUT_SECONDS, lease=LEASE_SECONDS,
)  # fmt: skip
def send(self: Any) -> dict[str, Any]:
    """Send one message. A receiver that goes by the message's id takes it once; one that does not may take it twice
    where the worker dies between sending it and recording that."""
    with get_db_session() as session:
        delivery = notifications.open_(session, job_id=self.job.id)
    if delivery is None:
        return {"sent": 0}
    try:
        deliver(delivery)
    except ChannelError as error:
        if not error.permanent:
            with get_db_session() as session:
                notifications.postponed(session, delivery=delivery, error=str(error))
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.job.attempt - 1, 20))
            raise self.retry(exc=error, countdown=pause) from None
        log.warning("channel_disabled", channel_id=delivery.channel_id)
        with get_db_session() as session:
            notifications.refused(session, delivery=delivery, error=str(error))
        return {"sent": 0, "refused": str(error)}
    return {"sent": _record(delivery)}


def deliver(delivery: Delivery) -> None:
    """Send a message. Raises ChannelError."""
    items = [(item.transition.value, item.alert) for item in delivery.items]
    message = compose(str(delivery.id), items, delivery.config.get("template"))
    channels.send(delivery.kind, delivery.config, message)


def _record(delivery: Delivery) -> int:
    """That it was taken. Raises DatabaseUnavailable where the database stays away."""
    for pause in RECORD_PAUSES:
        try:
            with get_db_session() as session:
                return notifications.sent(session, delivery=delivery)
        except DatabaseUnavailable:
            time.sleep(pause)
    with get_db_session() as session:
        return notifications.sent(session, delivery=delivery)
