"""The public status page, as facts: what each public check is by now, was in the last 90 days, and how fast."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Session

from db.histograms import percentile
from db.repositories.status_pages import StatusPageRepository
from db.states import CheckState

DAYS = 90
#: Checks on one page; and of how many of them latency is drawn: a page of thousands must still open on a phone.
MOST_CHECKS, MOST_PLOTS = 5000, 300
MOST_INCIDENTS, INCIDENT_DAYS = 50, 30
PLOT_HOURS = 48
#: A check whose run is late by so much is not known to be up: it may be us who are down.
LATE = timedelta(minutes=3)
#: The label by which checks are put together, and what those without it are called.
GROUP_LABEL, NO_GROUP = "group", "Services"


class Standing(StrEnum):
    """What is said of a check."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Day:
    """One UTC day: seconds by state. What was paused or not known counts for nothing."""

    date: date
    up: float
    degraded: float
    down: float

    @property
    def share(self) -> float | None:
        """Up or degraded, of the time that counts; None: nothing is known of this day."""
        known = self.up + self.degraded + self.down
        return (self.up + self.degraded) / known if known > 0 else None


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the page. ``days``: oldest first, DAYS of them; ``latencies``: the median of each hour in seconds,
    oldest first (None: nothing was measured), empty where none is drawn."""

    name: str
    standing: Standing
    since_at: datetime
    days: Sequence[Day]
    latencies: Sequence[float | None]

    @property
    def uptime(self) -> float | None:
        """Up or degraded in all these days, as a share of the time that counts."""
        good = sum(day.up + day.degraded for day in self.days)
        known = good + sum(day.down for day in self.days)
        return good / known if known > 0 else None


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    checks: Sequence[Check]


@dataclass(frozen=True, slots=True)
class Incident:
    """A time in which a check was down; without an end while it still is."""

    name: str
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class StatusPage:
    at: datetime
    groups: Sequence[Group]
    incidents: Sequence[Incident]

    @property
    def checks(self) -> list[Check]:
        return [check for group in self.groups for check in group.checks]


def gather(session: Session) -> StatusPage:
    """Read the page's facts: a few statements, whatever the number of checks."""
    rows = StatusPageRepository(session)
    now = rows.now().astimezone(UTC)
    found = rows.checks(MOST_CHECKS)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=DAYS - 1)
    lost: dict[tuple[int, date], dict[str, float]] = defaultdict(dict)
    for row in rows.days(since, now) if found else ():
        lost[row.check_id, row.day.astimezone(UTC).date()][row.state] = row.seconds
    latencies = _latencies(rows, [row.id for row in found[:MOST_PLOTS]], now)
    groups: dict[str, list[Check]] = defaultdict(list)
    for row in found:
        days = [_day(row, start, now, lost) for start in (since + timedelta(days=n) for n in range(DAYS))]
        name = row.labels.get(GROUP_LABEL)
        groups[name.strip() if isinstance(name, str) and name.strip() else NO_GROUP].append(
            Check(row.name, _standing(row, now), row.since_at.astimezone(UTC), days, latencies.get(row.id, ()))
        )
    incidents = rows.incidents(now - timedelta(days=INCIDENT_DAYS), MOST_INCIDENTS)
    return StatusPage(
        now,
        [Group(name, groups[name]) for name in sorted(groups, key=lambda name: (name == NO_GROUP, name.lower()))],
        [Incident(row.name, row.started_at, row.ended_at) for row in incidents],
    )


def _standing(row: Any, now: datetime) -> Standing:
    if row.state is CheckState.PAUSED:
        return Standing.PAUSED
    is_blind = row.blinds >= row.failure_threshold
    is_late = row.next_run_at is None or row.next_run_at < now - LATE
    return Standing.UNKNOWN if is_blind or is_late else Standing(row.state.value)


def _day(row: Any, start: datetime, now: datetime, lost: Mapping[tuple[int, date], Mapping[str, float]]) -> Day:
    """A day whose time is known by what is not up: all else, from when the check began, is."""
    there = lost.get((row.id, start.date()), {})
    begins = max(start, row.first_at) if row.first_at is not None else now
    covered = max(0.0, (min(start + timedelta(days=1), now) - begins).total_seconds())
    return Day(
        start.date(), max(0.0, covered - sum(there.values())), there.get("degraded", 0.0), there.get("down", 0.0)
    )


def _latencies(rows: StatusPageRepository, check_ids: list[int], now: datetime) -> dict[int, list[float | None]]:
    """The median of each of the last hours that are over, by check."""
    if not check_ids:
        return {}
    last = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    first = last - timedelta(hours=PLOT_HOURS - 1)
    found: dict[int, list[float | None]] = {}
    for row in rows.hours(check_ids, first):
        place = round((row.starts_at - first).total_seconds() / 3600)
        if 0 <= place < PLOT_HOURS:
            found.setdefault(row.check_id, [None] * PLOT_HOURS)[place] = percentile(row.histogram, 0.5)
    return found
