"""Times in which somebody worked on a check, cut into UTC days. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

Span = tuple[datetime, datetime]
#: Seconds by check and day; in all under ``ALL``, and of them in each state but up.
Seconds = Mapping[tuple[int, date], Mapping[str, float]]
ALL = "all"


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same times, each once."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def by_day(begin: datetime, end: datetime) -> Iterator[tuple[date, float]]:
    """The UTC days that a time touches, with its seconds in each."""
    begin, end = begin.astimezone(UTC), end.astimezone(UTC)
    while begin < end:
        midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        yield begin.date(), (min(end, midnight) - begin).total_seconds()
        begin = midnight


def seconds(spans: Mapping[int, Sequence[Span]], troubles: Iterable[tuple[int, str, datetime, datetime]]) -> Seconds:
    """How long each check was worked on each day, and how long of that it was in which state.

    ``spans``: merged, by check; ``troubles``: check, state, begin, end of what was not up.
    """
    found: dict[tuple[int, date], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for check_id, each in spans.items():
        for begin, end in each:
            for day, length in by_day(begin, end):
                found[check_id, day][ALL] += length
    for check_id, state, first, last in troubles:
        for begin, end in spans.get(check_id, ()):
            for day, length in by_day(max(begin, first), min(end, last)):
                found[check_id, day][state] += length
    return found
