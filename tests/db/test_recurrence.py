"""When a schedule fires, by an oracle of local clocks, and beside another library."""

from __future__ import annotations

from bisect import bisect
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from db import recurrence
from db.recurrence import Cron, Interval, Once

ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "UTC", "Asia/Kathmandu"]
NAMED = ["30 2 * * *", "0 2,3 * * *", "15 2 * * 0", "0 0 1 * *", "5,35 1-3 * * *", "45 1 25 10 *", "0 12 * * 1-5"]
HOURLY = ["0 * * * *", "*/30 2 * * *", "15 */2 * * *", "*/7 * * * *", "* 1-3 * * *"]
#: Near changes of the clocks of these zones.
CHANGES = ["2026-03-29T01:00", "2026-10-25T01:00", "2026-11-01T06:00", "2026-03-08T07:00", "2026-04-04T15:00"]


def when(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def cron(expression: str, zone: str) -> Cron:
    return recurrence.cron(expression, recurrence.zone(zone))


@lru_cache
def walk(expression: str, zone: str, start: str, end: str) -> list[datetime]:
    """What a person would see who looks at a clock on the wall each minute, and knows the rule."""
    made = recurrence.zone(zone)
    follows = any(field.startswith("*") for field in expression.split()[:2])
    found: list[datetime] = []
    moment, last = when(start), when(end)
    before = (moment - timedelta(minutes=1)).astimezone(made).replace(tzinfo=None)
    seen: set[datetime] = set()
    while moment < last:
        local = moment.astimezone(made).replace(tzinfo=None)
        jumped = [before + timedelta(minutes=n) for n in range(1, int((local - before) / timedelta(minutes=1)))]
        shown = [local] if follows else [local, *jumped]
        if any(croniter.match(expression, each) and (follows or each not in seen) for each in shown):
            found.append(moment)
        if not follows:
            seen.update(shown)
        before, moment = local, moment + timedelta(minutes=1)
    return found


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "5,35 1-3 * * *", "15 */2 * * *", "*/7 1,2 * * *"])
@pytest.mark.parametrize("around", ["2026-03-28T22:00", "2026-04-04T10:00", "2026-10-03T10:00", "2026-10-24T22:00"])
def test_it_fires_when_a_clock_on_the_wall_says_so(expression: str, zone: str, around: str) -> None:
    end = (when(around) + timedelta(hours=9)).isoformat()
    expected = walk(expression, zone, around, end)
    made, found, moment = cron(expression, zone), [], when(around) - timedelta(seconds=1)
    while (moment := made.after(moment)) < when(end):
        found.append(moment)
    assert found == expected


@pytest.mark.parametrize(
    ("expression", "zone", "start", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-29T01:00", "03-30T00:30"]),  # 3:00, then 2:30
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["10-25T00:30", "10-26T01:30"]),  # the first 2:30
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-29T01:00", "03-30T00:00"]),  # 3:00 once
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["03-30T00:00", "03-30T00:30"]),  # no such hour
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-25T00:15", ["10-25T00:30", "10-25T01:00"]),  # that hour twice
        ("0 * * * *", "America/New_York", "2026-11-01T04:30", ["11-01T05:00", "11-01T06:00"]),
        ("15 */2 * * *", "Australia/Lord_Howe", "2026-04-04T14:00", ["04-04T15:45", "04-04T17:45"]),
    ],
)
def test_where_clocks_change_it_does_as_the_rule_says(expression, zone, start, expected) -> None:
    found = recurrence.upcoming(cron(expression, zone), when(start), 2)
    assert found == [when(f"2026-{each}") for each in expected]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("expression", NAMED + HOURLY[:3])
def test_another_library_fires_at_the_same_times_where_no_clock_changes(expression: str, zone: str) -> None:
    start = datetime(2026, 6, 1, tzinfo=recurrence.zone(zone))
    other = croniter(expression, start)
    expected = [other.get_next(datetime).astimezone(UTC) for _ in range(40)]
    if expected[-1] > when("2026-10-02"):
        expected = [each for each in expected if each < when("2026-10-02")]
    assert recurrence.upcoming(cron(expression, zone), start.astimezone(UTC), len(expected)) == expected


@lru_cache
def times(expression: str, zone: str, around: str) -> list[datetime]:
    made, found, moment = cron(expression, zone), [], when(around) - timedelta(days=9)
    while (moment := made.after(moment)) < when(around) + timedelta(days=9):
        found.append(moment)
    return found


@settings(max_examples=150)
@given(
    st.sampled_from(NAMED + HOURLY[:4]),
    st.sampled_from(ZONES[:4]),
    st.sampled_from(CHANGES),
    st.integers(-4 * 3600, 4 * 3600),
    st.integers(0, 999_999),
)
def test_what_comes_next_and_what_was_last_agree_with_the_whole_list(expression, zone, around, seconds, micros) -> None:
    known, made = times(expression, zone, around), cron(expression, zone)
    assert all(earlier < later for earlier, later in pairwise(known))
    moment = when(around) + timedelta(seconds=seconds, microseconds=micros)
    if known and known[0] <= moment < known[-1]:
        place = bisect(known, moment)
        assert made.latest(moment) == known[place - 1]
        assert made.after(moment) == known[place]
        assert made.after(known[place - 1]) == known[place]


@given(st.integers(1, 10**6), st.integers(-(10**8), 10**8))
def test_an_interval_keeps_its_beat_whenever_it_is_asked(every: int, since: int) -> None:
    anchor = when("2026-01-01")
    moment = anchor + timedelta(seconds=since)
    made = Interval(timedelta(seconds=every), anchor)
    following, last = made.after(moment), made.latest(moment)
    assert following is not None
    assert following > max(moment, anchor)
    assert (following - anchor) % made.every == timedelta(0)
    assert last is None or (last <= moment and made.after(last) == following)
    assert (last is None) == (moment < anchor + made.every)


def test_once_is_once() -> None:
    made = Once(when("2026-12-01T03:00"))
    assert made.after(when("2026-12-01T02:59")) == made.at == made.latest(made.at)
    assert made.after(made.at) is None
    assert made.latest(when("2026-12-01T02:59")) is None


@pytest.mark.parametrize(
    "expression",
    [
        "", "x", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8",
        "*/0 * * * *", "5-2 * * * *", "0 0 30 2 *", "0 0 31 2,4 *", "@daily", "0 0 * * *\n", "0 0 * * \u0665",
        "1//2 * * * *", "9" * 200 + " * * * *", "-1 * * * *", "L/2 0 * * *", "0 0 LW * L", "$(id) * * * *",
    ],
)  # fmt: skip
def test_what_is_no_cron_expression_is_refused_in_one_line(expression: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{5,300}$"):
        cron(expression, "Europe/Berlin")


@pytest.mark.parametrize(
    "zone",
    ["", "Mars/Base", "../../etc/passwd", "/etc/localtime", "localtime", "right/UTC", "America", "UTC\0", "a" * 99],
)
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="Europe/Berlin"):
        recurrence.zone(zone)


def test_durations_are_read_as_they_are_written() -> None:
    for text, seconds in (("1s", 1), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172_800), ("366d", 31_622_400)):
        assert recurrence.seconds(text) == seconds
        assert recurrence.seconds(recurrence.duration(seconds)) == seconds
    for text in ("", "0s", "1", "1w", "-1s", "1s1m", "367d", "99999999999s", "1.5h", "\u0661s"):
        with pytest.raises(ValueError, match=r"^\w"):
            recurrence.seconds(text)
