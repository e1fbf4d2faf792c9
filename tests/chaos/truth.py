"""What the monitoring chaos knows by itself: when each site is down, and what must have come of that."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Truth = list[list[tuple[float, float]]]

#: A down interval, and the pause between two, last so long that they are seen whatever is killed meanwhile: a batch
#: that dies with its worker is given up after half a minute, the one after it may die as well, and two runs of one mind
#: make a state.
SHORTEST_SECONDS = 90.0
#: What a site says while it is down, as the probe puts it. Any other "down" is the platform's invention.
SAID = "it answers 503"
#: A run asks within so many seconds of its claim, or its result counts no more: so long may its message wait, and so
#: long is it waited for.
IN_FLIGHT_SECONDS = 30.0


@dataclass(frozen=True)
class Run:
    """A result that says down: when the run was claimed, in seconds since 1970."""

    site: int
    claimed_at: float
    message: str


@dataclass(frozen=True)
class Alert:
    """One that was raised; times are seconds since 1970. ``seen_at``: when the run that decided it was claimed. That is
    the time to judge by: when it was written down depends on how busy the machine is."""

    id: int
    site: int
    seen_at: float
    resolved_at: float | None


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    wanted: int | None
    found: int | str

    @property
    def is_kept(self) -> bool:
        return self.wanted is None or self.wanted == self.found


def script(sites: int, begin: float, seconds: float, seed: int) -> Truth:
    """Two down intervals of most sites, one of some, none of few, as time allows; the first may end after it."""
    dice = random.Random(seed)
    made: Truth = []
    for _ in range(sites):
        found: list[tuple[float, float]] = []
        start = dice.uniform(0.02, 0.15) * seconds
        for _ in range(dice.choice((0, 1, 2, 2, 2))):
            end = start + SHORTEST_SECONDS * dice.uniform(1.0, 1.2)
            if found and end > seconds:
                break
            found.append((begin + start, begin + end))
            start = end + SHORTEST_SECONDS * dice.uniform(0.9, 1.0)
        made.append(found)
    return made


def judge(truth: Truth, alerts: Iterable[Alert], messages: Sequence[Mapping[str, Any]], channels: int) -> list[Line]:
    """Alerts raised = true intervals, each told of once per channel: a line each, with what was wanted."""
    by_site: dict[int, list[Alert]] = defaultdict(list)
    for alert in alerts:
        by_site[alert.site].append(alert)
    missed = invented = unresolved = 0
    for site, intervals in enumerate(truth):
        left = by_site.pop(site, [])
        for start, end in intervals:
            # The deciding run was claimed after an earlier one had seen it down, and before it was up again: exactly.
            fits = [each for each in left if start <= each.seen_at <= end]
            missed += not fits
            if fits:
                left.remove(fits[0])
                unresolved += fits[0].resolved_at is None or fits[0].resolved_at < end
        invented += len(left)
    invented += sum(map(len, by_site.values()))
    intervals = sum(map(len, truth))
    return [
        Line("true down intervals", None, intervals),
        Line("alerts raised", intervals, intervals - missed + invented),
        Line("  missed", 0, missed),
        Line("  invented", 0, invented),
        Line("  not resolved, or before the end", 0, unresolved),
        *_told(messages, intervals, channels),
    ]


def judge_runs(truth: Truth, runs: Iterable[Run]) -> tuple[list[Line], list[Run]]:
    """No run says down of a site that was not, nor for a reason that is not the site's. Those that do come as well."""
    invented, count = [], 0
    for run in runs:
        count += 1
        asked = (run.claimed_at, run.claimed_at + IN_FLIGHT_SECONDS)
        is_true = any(start <= asked[1] and asked[0] <= end for start, end in truth[run.site])
        if not is_true or run.message != SAID:
            invented.append(run)
    return [Line("runs that say down", None, count), Line("  of sites that did not say so", 0, len(invented))], invented


def _told(messages: Sequence[Mapping[str, Any]], intervals: int, channels: int) -> list[Line]:
    unique = {each["id"]: each for each in messages}
    told = Counter(
        (each["channel"], alert["id"], alert["transition"]) for each in unique.values() for alert in each["alerts"]
    )
    raw = sum(len(each["alerts"]) for each in messages)
    return [
        Line("messages that came to the receiver", None, len(messages)),
        Line("  of them again, under the same id", None, len(messages) - len(unique)),
        Line("notices that came (before the id is looked at)", None, raw),
        Line("notices, each message counted once", 2 * intervals * channels, sum(told.values())),
        Line("  told more than once", 0, sum(count - 1 for count in told.values())),
        Line("  (alert, channel) told of its beginning", intervals * channels, _kinds(told, "raised")),
        Line("  (alert, channel) told of its end", intervals * channels, _kinds(told, "resolved")),
    ]


def _kinds(told: Mapping[tuple[str, int, str], int], transition: str) -> int:
    return sum(1 for each in told if each[2] == transition)
