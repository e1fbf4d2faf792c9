"""What each rule measures. A measure answers a reading for each thing it looks at, beyond its threshold or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db.encryption import get_keyring
from db.errors import DecryptionError
from db.repositories.stats import StatsRepository
from db.repositories.watch import WatchRepository
from db.seals import seal_keys
from db.services import sealing

#: How far a burst of failed logins, and the growth of the trail, look back.
BURST, GROWTH = timedelta(minutes=5), timedelta(minutes=10)


class CannotTell(Exception):
    """This process cannot measure it, or it means nothing now: whatever was so before stays so."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value. ``subject`` names the thing, where a rule looks at several."""

    subject: str
    value: float
    message: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    infrastructure_id: int | None = None
    application_id: int | None = None
    deployment_id: int | None = None


Measure = Callable[[Session], list[Reading]]


def stuck_deployments(session: Session) -> list[Reading]:
    """Seconds by which a deployment is past its timeout, or has been due with nothing in its way."""
    _not_paused(session)
    return [
        Reading(
            f"deployment {row.id} of {row.application} to {row.infrastructure}", float(row.seconds),
            f"it {'runs past its timeout' if row.state == 'running' else 'is due, and nothing is in its way'}",
            {"application": row.application, "infrastructure": row.infrastructure},
            row.infrastructure_id, row.application_id, row.id,
        )
        for row in WatchRepository(session).stuck_deployments()
    ]  # fmt: skip


def queue_age(session: Session) -> list[Reading]:
    """Seconds that the oldest due job of a queue has waited, behind no lock."""
    _not_paused(session)
    return [
        Reading(row.queue, float(row.seconds), f"{row.jobs} jobs are due", {"queue": row.queue})
        for row in WatchRepository(session).queue_ages()
    ]


def workers(session: Session) -> list[Reading]:
    """How many workers serve a queue in which there is work, or which a worker served that died."""
    watch = WatchRepository(session)
    alive = watch.living_workers()
    served: dict[str, int] = {}
    for worker in alive:
        for queue in worker.info.get("queues") or ():
            served[queue] = served.get(queue, 0) + 1
    died = {queue for worker in watch.workers() for queue in worker.info.get("queues") or ()}
    return [
        Reading(queue, served.get(queue, 0), f"{served.get(queue, 0)} workers serve it", {"queue": queue})
        for queue in sorted(watch.queues_with_work() | died)
    ]


def beats(session: Session) -> list[Reading]:
    """How many beats live."""
    return [Reading("", WatchRepository(session).alive("beat"), "start one: celery -A worker.app beat")]


def failed_logins(session: Session) -> list[Reading]:
    """Failed logins within five minutes."""
    found = StatsRepository(session).failed_logins(BURST)
    said = f"{found.failed} of {found.usernames} names, from {found.addresses} addresses"
    return [Reading("", found.failed, said)]


def audit_growth(session: Session) -> list[Reading]:
    """Entries an hour, by those of the last ten minutes."""
    entries = WatchRepository(session).audit_entries(GROWTH)
    return [Reading("", entries * (timedelta(hours=1) / GROWTH), f"{entries} entries in ten minutes")]


def seal_lag(session: Session) -> list[Reading]:
    """Seconds that the oldest entry has waited for its seal."""
    keys = seal_keys()
    if keys.signer is None:
        raise CannotTell
    state = sealing.state(session, keys)
    age = (datetime.now(UTC) - state.oldest_unsealed_at).total_seconds() if state.oldest_unsealed_at else 0.0
    return [Reading("", age, f"{state.unsealed} entries wait")]


def partitions(session: Session) -> list[Reading]:
    """Months of the audit trail, and days of what checks have seen, that are made ahead."""
    months, days = WatchRepository(session).partitions_ahead()
    return [
        Reading("the audit trail", months, f"{months} months are made ahead"),
        Reading("check results", days, f"{days} days are made ahead"),
    ]


def connections(session: Session) -> list[Reading]:
    """The share of the server's connections in use."""
    used, most = WatchRepository(session).connections()
    return [Reading("", 100 * used / max(most, 1), f"{used} of {most} are in use")]


def slow_statements(session: Session) -> list[Reading]:
    """Seconds of the statement that has run longest."""
    found = WatchRepository(session).slowest_statement()
    return [] if found is None else [Reading("", found[0], f"of {found[1] or 'a process without a name'}")]


def unreadable_values(session: Session) -> list[Reading]:
    """How many of the newest stored values do not open with the keys of this process."""
    failed, _ = _open_sample(session)
    fields = ", ".join(sorted(failed))
    return [Reading("", sum(failed.values()), f"of {fields}" if fields else None)]


def decryption_time(session: Session) -> list[Reading]:
    """Milliseconds that opening one value takes."""
    _, milliseconds = _open_sample(session)
    return [Reading("", milliseconds)]


def disks(session: Session) -> list[Reading]:
    """The share of a worker's disk in use, as each worker says it."""
    found: dict[str, Reading] = {}
    for worker in WatchRepository(session).living_workers():
        disk = worker.info.get("disk")
        if isinstance(disk, dict) and isinstance(disk.get("used_percent"), int | float):
            host = worker.name.rpartition("@")[2]
            subject = f"{host} {disk.get('path')}"
            found[subject] = Reading(subject, float(disk["used_percent"]), None, {"host": host})
    return list(found.values())


def broken_channels(session: Session) -> list[Reading]:
    """1 for each channel that an error has disabled."""
    return [
        Reading(channel.name, 1, channel.disabled_because, {"channel": channel.name})
        for channel in WatchRepository(session).broken_channels()
    ]


def late_notifications(session: Session) -> list[Reading]:
    """Seconds that a channel's oldest message has been tried to be sent."""
    return [
        Reading(row.name, float(row.seconds), row.error, {"channel": row.name})
        for row in WatchRepository(session).late_notifications()
    ]


def _open_sample(session: Session) -> tuple[dict[str, int], float]:
    """Per field how many values do not open, and the milliseconds that one takes."""
    keyring = get_keyring()
    if not keyring.ids:
        raise CannotTell
    failed: dict[str, int] = {}
    stored = WatchRepository(session).sample_of_encrypted()
    began = time.perf_counter()
    for each in stored:
        try:
            keyring.open(each.value, each.label)
        except DecryptionError:
            failed[each.label] = failed.get(each.label, 0) + 1
    return failed, 1000 * (time.perf_counter() - began) / max(len(stored), 1)


def _not_paused(session: Session) -> None:
    if StatsRepository(session).ledger_state().paused_because is not None:
        raise CannotTell  # everything waits, and is meant to
