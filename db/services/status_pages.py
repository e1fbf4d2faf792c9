"""The public status page, as facts: what each public check is by now, was in the last 90 days, and how fast."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Session

from db.alerting import matches
from db.histograms import percentile
from db.repositories.silences import MaintenanceWindowRepository
from db.repositories.status_pages import StatusPageRepository
from db.services import maintained, outages
from db.states import CheckState

DAYS = 90
#: Checks on one page; and of how many of them latency is drawn: a page of thousands must still open on a phone.
MOST_CHECKS, MOST_PLOTS = 5000, 300
MOST_INCIDENTS, INCIDENT_DAYS = 50, 30
PLOT_HOURS = 48
#: Planned work is told of so long ahead.
MAINTENANCE_DAYS = 7
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
    MAINTENANCE = "maintenance"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Day:
    """One UTC day: seconds by state. What was paused, worked on or not known counts for nothing."""

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
class Maintenance:
    """Planned work, on public checks by their names. Its title stays here: it may name what is not public."""

    starts_at: datetime
    ends_at: datetime
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class StatusPage:
    at: datetime
    groups: Sequence[Group]
    incidents: Sequence[Incident]
    maintenance: Sequence[Maintenance] = ()

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
    works = _works(session, found, since, now + timedelta(days=MAINTENANCE_DAYS))
    worked = _worked(rows, found, works, since, now)
    lost: dict[tuple[int, date], dict[str, float]] = defaultdict(dict)
    for row in rows.days(since, now) if found else ():
        lost[row.check_id, row.day.astimezone(UTC).date()][row.state] = row.seconds
    latencies = _latencies(rows, [row.id for row in found[:MOST_PLOTS]], now)
    busy = {check_id for window, affected in works if window.holds(now) for check_id in affected}
    groups: dict[str, list[Check]] = defaultdict(list)
    for row in found:
        days = [_day(row, start, now, lost, worked) for start in (since + timedelta(days=n) for n in range(DAYS))]
        standing = Standing.MAINTENANCE if row.id in busy else _standing(row, now)
        name = row.labels.get(GROUP_LABEL)
        groups[name.strip() if isinstance(name, str) and name.strip() else NO_GROUP].append(
            Check(row.name, standing, row.since_at.astimezone(UTC), days, latencies.get(row.id, ()))
        )
    names = {row.id: row.name for row in found}
    incidents = rows.incidents(now - timedelta(days=INCIDENT_DAYS), MOST_INCIDENTS)
    return StatusPage(
        now,
        [Group(name, groups[name]) for name in sorted(groups, key=lambda name: (name == NO_GROUP, name.lower()))],
        [Incident(row.name, row.started_at, row.ended_at) for row in incidents],
        [
            Maintenance(work.starts_at, work.ends_at, [names[check_id] for check_id in affected])
            for work, affected in works
            if work.ends_at > now
        ],
    )


def _works(
    session: Session, found: Sequence[Any], since: datetime, until: datetime
) -> list[tuple[_Work, Sequence[int]]]:
    """Maintenance in a time, by its start, each with the checks that it is about; without what is about none."""
    works: list[tuple[_Work, Sequence[int]]] = []
    for window in MaintenanceWindowRepository(session).between(since, until):
        affected = [row.id for row in found if matches(window.matchers, _labels(row))]
        if affected:
            ends_at = min(window.ends_at, window.ended_at or window.ends_at)
            works.append((_Work(window.starts_at, ends_at), affected))
    return works


@dataclass(frozen=True, slots=True)
class _Work:
    starts_at: datetime
    ends_at: datetime

    def holds(self, moment: datetime) -> bool:
        return self.starts_at <= moment < self.ends_at


def _labels(row: Any) -> dict[str, str]:
    """What the alert of a check that is down is held against."""
    labels = {str(name): str(value) for name, value in row.labels.items()}
    return labels | {
        "check": row.name, "kind": row.kind.value, "alert_type": outages.DOWN, "severity": row.severity.value,
    }  # fmt: skip


def _worked(
    rows: StatusPageRepository, found: Sequence[Any], works: Sequence[tuple[_Work, Sequence[int]]], since: datetime,
    now: datetime,
) -> maintained.Seconds:  # fmt: skip
    begins = {row.id: max(since, row.first_at or now) for row in found}
    spans: dict[int, list[maintained.Span]] = defaultdict(list)
    for work, affected in works:
        for check_id in affected:
            begin, end = max(work.starts_at, begins[check_id]), min(work.ends_at, now)
            if begin < end:
                spans[check_id].append((begin, end))
    if not spans:
        return {}
    troubles = [
        (row.check_id, row.state.value, row.started_at, row.ended_at or now)
        for row in rows.troubles(list(spans), since)
    ]
    return maintained.seconds({check_id: maintained.merged(each) for check_id, each in spans.items()}, troubles)


def _standing(row: Any, now: datetime) -> Standing:
    if row.state is CheckState.PAUSED:
        return Standing.PAUSED
    is_blind = row.blinds >= row.failure_threshold
    is_late = row.next_run_at is None or row.next_run_at < now - LATE
    return Standing.UNKNOWN if is_blind or is_late else Standing(row.state.value)


def _day(
    row: Any, start: datetime, now: datetime, lost: Mapping[tuple[int, date], Mapping[str, float]],
    worked: maintained.Seconds,
) -> Day:  # fmt: skip
    """A day whose time is known by what is not up: all else, from when the check began, is."""
    key = (row.id, start.date())
    there, work = lost.get(key, {}), worked.get(key, {})
    left = {state: max(0.0, seconds - work.get(state, 0.0)) for state, seconds in there.items()}
    begins = max(start, row.first_at) if row.first_at is not None else now
    covered = max(0.0, (min(start + timedelta(days=1), now) - begins).total_seconds() - work.get(maintained.ALL, 0.0))
    return Day(start.date(), max(0.0, covered - sum(left.values())), left.get("degraded", 0.0), left.get("down", 0.0))


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
