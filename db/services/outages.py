"""Checks that are down, degraded or blind, as conditions.

A check's state follows from its runs; what it was in between stands in ``check_intervals``. So a time at which a check
was down is told of even where it began and ended between two looks: each such time is a spell, named by the interval it
began with. A time at which nothing could be seen ends no spell, and neither does a pause.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from db.alerting import Condition
from db.models import CheckInterval, CheckStanding, MonitoringCheck
from db.repositories import TickRepository
from db.repositories.outages import OutageRepository
from db.services import silences
from db.services.evaluation import Alerts, Observation, labels_of
from db.states import CheckState, Severity

DOWN, DEGRADED, BLIND = "check_down", "check_degraded", "check_blind"
TYPES = frozenset({DOWN, DEGRADED, BLIND})
#: The tick that looks; what ended since it last did is told of as well. Transactions overlap by no more than this.
TICK, OVERLAP = "alerts", timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Spell:
    """A time at which a check was down. ``ended_at`` None: it goes on."""

    interval_id: int
    started_at: datetime
    ended_at: datetime | None


def observe(session: Session, known: Alerts) -> Observation:
    """What is wrong with checks now, and what was since the last look and is over."""
    rows = OutageRepository(session)
    standings = {check.id: (check, standing) for check, standing in rows.standings(_check_ids(known))}
    since = _last_look(session)
    ended = {} if since is None else {check.id: (check, standing) for check, standing in rows.were_down(since)}
    everyone = ended | standings
    first = {key: _episode(known, key) for key, (_, standing) in everyone.items() if _may_be_down(known, standing)}
    intervals = rows.intervals({key: first.get(key) for key in {*first, *ended}})
    seen = _Seen(known, since)
    for key, (check, standing) in sorted(everyone.items()):
        seen.look(check, standing, spells(intervals.get(key, ()), first.get(key)))
    past = [each for each, spell in seen.past if not _was_maintained(session, each, spell)]
    return Observation(TYPES, seen.conditions, frozenset(seen.held), past=past)


class _Seen:
    """What is made of each check."""

    def __init__(self, known: Alerts, since: datetime | None) -> None:
        self.known = known
        self.since = since
        self.conditions: list[Condition] = []
        self.held: set[str] = set()
        self.past: list[tuple[Condition, Spell]] = []

    def look(self, check: MonitoringCheck, standing: CheckStanding, found: list[Spell]) -> None:
        if standing.state is CheckState.PAUSED:
            self.held |= {f"{kind}:{check.id}" for kind in TYPES}
            return
        if standing.blinds >= check.failure_threshold:
            self.conditions.append(_blind(check, standing))
        if standing.state is CheckState.DEGRADED:
            self.conditions.append(_degraded(check, standing))
        down = f"{DOWN}:{check.id}"
        if down in self.known and (standing.is_flapping or standing.state is CheckState.UNKNOWN):
            # What flaps is not told of at each turn, and nothing is known of what has just been edited.
            self.held.add(down)
        for spell in found:
            if spell.ended_at is None:
                self.conditions.append(_down(check, spell, standing.last_message))
            elif self.since is not None and spell.ended_at > self.since:
                self.past.append((_down(check, spell, None), spell))


def spells(intervals: Iterable[CheckInterval], first: int | None = None) -> list[Spell]:
    """The spells in a check's intervals, which come in order. What begins in the middle of one is a part of it; so is
    what comes before any other state where the first one is known to be a spell's (``first``: its id)."""
    found: list[Spell] = []
    begun: tuple[int, datetime] | None = None
    for n, interval in enumerate(intervals):
        if interval.state is CheckState.DOWN and begun is None:
            begun = (first if n == 0 and first is not None else interval.id, interval.started_at)
        elif interval.state in (CheckState.UP, CheckState.DEGRADED) and begun is not None:
            found.append(Spell(*begun, interval.started_at))
            begun = None
    return found if begun is None else [*found, Spell(*begun, None)]


def _check_ids(known: Alerts) -> set[int]:
    return {int(each.partition(":")[2]) for each, alert in known.items() if alert.alert_type in TYPES}


def _episode(known: Alerts, check_id: int) -> int | None:
    alert = known.get(f"{DOWN}:{check_id}")
    return int(alert.episode) if alert is not None and alert.episode else None


def _may_be_down(known: Alerts, standing: CheckStanding) -> bool:
    return standing.state is CheckState.DOWN or f"{DOWN}:{standing.check_id}" in known


def _last_look(session: Session) -> datetime | None:
    last = TickRepository(session).last_success(TICK)
    return None if last is None else last - OVERLAP


def _was_maintained(session: Session, seen: Condition, spell: Spell) -> bool:
    """Whether somebody worked on it until after it was over."""
    assert spell.ended_at is not None
    return silences.was_maintained(session, labels_of(seen), spell.ended_at)


def _down(check: MonitoringCheck, spell: Spell, message: str | None) -> Condition:
    return _condition(
        DOWN, check, check.severity, f"{check.name} is down", message, str(spell.interval_id), spell.started_at
    )


def _degraded(check: MonitoringCheck, standing: CheckStanding) -> Condition:
    since = standing.since_at
    title = f"{check.name} is degraded"
    return _condition(DEGRADED, check, _milder(check), title, standing.last_message, since.isoformat(), since)


def _blind(check: MonitoringCheck, standing: CheckStanding) -> Condition:
    since = standing.blind_at
    episode, title = since.isoformat() if since else "", f"{check.name} cannot be looked at"
    return _condition(BLIND, check, _milder(check), title, standing.last_message, episode, since)


def _milder(check: MonitoringCheck) -> Severity:
    return min(check.severity, Severity.MEDIUM, key=lambda each: each.rank)


def _condition(
    kind: str, check: MonitoringCheck, severity: Severity, title: str, message: str | None, episode: str,
    since: datetime | None,
) -> Condition:  # fmt: skip
    labels = {str(name): str(value) for name, value in check.labels.items()}
    return Condition(
        fingerprint=f"{kind}:{check.id}", alert_type=kind, severity=severity, title=title, message=message,
        labels=labels | {"check": check.name, "kind": check.kind.value}, episode=episode, since=since,
        application_id=check.application_id, infrastructure_id=check.infrastructure_id, is_new_alert=kind == DOWN,
    )  # fmt: skip
