"""The alert machine, pure: what follows from what is seen, and who is to be told of it.

Nothing here asks a clock or a database. A tick gathers what is wrong now, asks :func:`decide` for each fingerprint, and
applies the answers, each as a compare-and-set; another one asks :func:`plan` for each alert that is not told of to its
end. Both go by what is, not by what has changed since the last look: a look that was lost, doubled or cut off in the
middle changes nothing but the time at which the next one does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase

from db.states import AlertStatus, Severity, Transition

#: A figure that moves is written into an open alert no oftener: each change leaves an entry in the trail.
FIGURES_EVERY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong. ``episode`` tells this time from the one before of the same fingerprint; ``since`` is
    when it began (None: when it was first seen). ``is_new_alert``: another episode is another alert, and not more of
    the open one."""

    fingerprint: str
    alert_type: str
    severity: Severity
    title: str
    message: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    episode: str = ""
    since: datetime | None = None
    for_seconds: float = 0
    threshold_value: float | None = None
    current_value: float | None = None
    infrastructure_id: int | None = None
    application_id: int | None = None
    deployment_id: int | None = None
    is_new_alert: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What the database holds of a fingerprint that is not over: its open alert, or the one that a person has resolved
    while it went on."""

    alert_id: int
    status: AlertStatus
    episode: str
    started_at: datetime
    severity: Severity
    title: str
    message: str | None = None
    current_value: float | None = None
    deployment_id: int | None = None
    written_at: datetime | None = None


class Step(StrEnum):
    """What is to be done with a fingerprint."""

    BEGIN = "begin"  # a pending alert
    RAISE = "raise"  # a firing one
    FIRE = "fire"  # the pending one fires
    CHANGE = "change"  # the open one says more
    WITHDRAW = "withdraw"  # the pending one was nothing
    RESOLVE = "resolve"  # the firing one is over
    CLEAR = "clear"  # what a person had resolved is over


def decide(known: Known | None, seen: Condition | None, now: datetime) -> tuple[Step, ...]:
    """What follows, in order. Whatever could not be looked at, or is under maintenance, is not asked for."""
    if known is None:
        return () if seen is None else (_begin(seen, now),)
    if seen is None:
        return (_END[known.status],)
    is_other = bool(seen.episode) and seen.episode != known.episode
    if known.status is AlertStatus.RESOLVED:
        return (Step.CLEAR, _begin(seen, now)) if is_other else ()
    if is_other and seen.is_new_alert:
        return (_END[known.status], _begin(seen, now))
    steps = (Step.CHANGE,) if _says_more(known, seen, now) else ()
    if known.status is AlertStatus.PENDING and _is_ripe(known.started_at, seen, now):
        return (*steps, Step.FIRE)
    return steps


_END = {
    AlertStatus.PENDING: Step.WITHDRAW,
    AlertStatus.FIRING: Step.RESOLVE,
    AlertStatus.RESOLVED: Step.CLEAR,
}


def _begin(seen: Condition, now: datetime) -> Step:
    return Step.RAISE if _is_ripe(seen.since or now, seen, now) else Step.BEGIN


def _is_ripe(since: datetime, seen: Condition, now: datetime) -> bool:
    # A time to come is one of before the clock was set back.
    return max(now - since, timedelta()) >= timedelta(seconds=seen.for_seconds)


def _says_more(known: Known, seen: Condition, now: datetime) -> bool:
    if (known.severity, known.title) != (seen.severity, seen.title) or seen.episode not in ("", known.episode):
        return True
    figures = (known.message, known.current_value) != (seen.message, seen.current_value)
    return figures and (known.written_at is None or now - known.written_at >= FIGURES_EVERY)


def matches(matchers: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether every matcher fits: a label's name, and its value, in which ``*`` and ``?`` stand for others."""
    return all(name in labels and fnmatchcase(labels[name], value) for name, value in matchers.items())


# Who is told ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """Which alerts go to a channel, and how."""

    id: int
    channel_id: int
    severity: Severity = Severity.LOW
    matchers: Mapping[str, str] = field(default_factory=dict)
    group_by: tuple[str, ...] = ()
    wait: timedelta = timedelta(seconds=30)
    repeat: timedelta = timedelta(hours=4)


@dataclass(frozen=True, slots=True)
class Told:
    """The newest that a channel was told of an alert, or is about to be."""

    transition: Transition
    sequence: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Telling:
    """An alert as it is told. ``labels`` include its type and severity."""

    alert_id: int
    status: AlertStatus
    severity: Severity
    labels: Mapping[str, str]
    is_acknowledged: bool = False
    is_silenced: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell: one row of ``notifications``."""

    alert_id: int
    channel_id: int
    transition: Transition
    sequence: int
    group_key: str
    due_at: datetime


def plan(alert: Telling, routes: Sequence[Route], told: Mapping[int, Told], now: datetime) -> list[Notice]:
    """What is to be told of an alert that is firing or resolved, given what each channel was told of it already.

    One that has begun and ended between two looks is told of twice at once. A silenced one is not told of, but the end
    of what was told always is. What nobody looks after is repeated.
    """
    notices: list[Notice] = []
    asked: set[int] = set()
    for route in routes:
        if route.channel_id in asked:
            continue  # the first route to a channel counts
        last = told.get(route.channel_id)
        fits = alert.severity.rank >= route.severity.rank and matches(route.matchers, alert.labels)
        if not fits and last is None:
            continue  # by another route to the same channel, perhaps
        asked.add(route.channel_id)
        key = group_key(route, alert.labels)
        for transition, sequence in _wanted(alert, route, last, now):
            notices.append(Notice(alert.alert_id, route.channel_id, transition, sequence, key, now + route.wait))
    if alert.status is AlertStatus.RESOLVED:
        notices += [
            Notice(alert.alert_id, channel_id, Transition.RESOLVED, 0, "", now)
            for channel_id in sorted(set(told) - asked)  # its route is gone since
            if told[channel_id].transition is not Transition.RESOLVED
        ]
    return notices


def _wanted(alert: Telling, route: Route, last: Told | None, now: datetime) -> list[tuple[Transition, int]]:
    is_over = alert.status is AlertStatus.RESOLVED
    if last is None:
        if alert.is_silenced:
            return []
        return [(Transition.RAISED, 0), *([(Transition.RESOLVED, 0)] if is_over else [])]
    if last.transition is Transition.RESOLVED:
        return []
    if is_over:
        return [(Transition.RESOLVED, 0)]
    is_due = route.repeat > timedelta() and now - last.at >= route.repeat
    if is_due and not alert.is_acknowledged and not alert.is_silenced:
        return [(Transition.REPEATED, last.sequence + 1)]
    return []


def group_key(route: Route, labels: Mapping[str, str]) -> str:
    """Names the group in which a notice waits for others."""
    return "|".join([str(route.id), *(f"{name}={labels.get(name, '')}" for name in route.group_by)])[:1000]
