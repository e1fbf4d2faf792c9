"""Figures for those who watch: what has been counted, and one snapshot of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from db.models import Counter, Tick
from db.repositories.audit_seals import AuditSealRepository
from db.repositories.counters import CounterRepository
from db.repositories.metrics import MetricsRepository, Trail
from db.seals import SealKeys
from db.services import sealing

#: Entries of the trail counted in one transaction.
BATCH = 5000
#: Entries without a seal are counted up to here: how long the oldest has waited says the rest.
MOST_UNSEALED = 10_000


@dataclass(frozen=True, slots=True)
class SealLag:
    """Entries of the trail that no seal holds yet (at most MOST_UNSEALED), and the age of the oldest in seconds."""

    entries: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment. ``seals`` is None where this process knows no key to tell a seal by."""

    at: datetime
    queued: Sequence[Any]
    running: Sequence[Any]
    checks: Sequence[Any]
    notifications: Sequence[Any]
    alerts: Sequence[Any]
    processes: Sequence[Any]
    ticks: Sequence[Tick]
    paused: bool
    trail: Trail
    seals: SealLag | None
    connections: Sequence[Any]
    connection_limit: int
    database_bytes: int
    counters: Sequence[Counter]


def snapshot(session: Session, keys: SealKeys) -> Snapshot:
    """Read everything in one read-only transaction, which must be fresh."""
    rows = MetricsRepository(session)
    rows.begin()
    now = rows.now()
    return Snapshot(
        at=now,
        queued=rows.queued(),
        running=rows.running(),
        checks=rows.checks(),
        notifications=rows.notifications(),
        alerts=rows.alerts(),
        processes=rows.processes(),
        ticks=rows.ticks(),
        paused=rows.paused(),
        trail=rows.trail(),
        seals=_seal_lag(session, keys, now) if keys else None,
        connections=rows.connections(),
        connection_limit=rows.connection_limit(),
        database_bytes=rows.database_bytes(),
        counters=CounterRepository(session).list_(),
    )


def _seal_lag(session: Session, keys: SealKeys, now: datetime) -> SealLag:
    trail = AuditSealRepository(session)
    last = sealing.newest(trail, keys)
    waiting = [
        trail.unsealed(place.start, place.floor, place.ceiling, limit=MOST_UNSEALED)
        for place in sealing.places(trail, last, trail.server())
    ]
    oldest = min((each.oldest_at for each in waiting if each.oldest_at is not None), default=now)
    return SealLag(sum(each.count for each in waiting), max(0.0, (now - oldest).total_seconds()))


def count_next(session: Session) -> int:
    """Count the next entries of the trail, a batch at most; answers how many. 0 also while somebody else counts."""
    counters = CounterRepository(session)
    position = counters.lock()
    return 0 if position is None else counters.count(position, BATCH)
