"""Three beats, 200 schedules and a month in which clocks change in three time zones, beside another library."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError

from db.connection import get_db_session
from db.models import Job, Schedule
from db.services import firing, schedules
from db.states import JobState, Outcome

START, END = datetime(2026, 10, 3, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC)
#: Sydney goes forward on October 4, Berlin back on October 25, New York back on November 1.
ZONES = ["Australia/Sydney", "Europe/Berlin", "America/New_York"]
BEATS, SCHEDULES = 3, 200


def expressions(random: Random) -> Iterator[str]:
    """Mostly once or twice a day, many of them in the hours in which clocks change."""
    while True:
        minute, hour = random.choice([0, 0, 15, 30, 59]), random.choice([0, 1, 1, 2, 2, 2, 3, 12, 23])
        yield from (f"{minute} {hour} * * *", f"{minute} {hour},{(hour + 12) % 24} * * 1-5", f"*/30 {hour} * * 0,6")
        yield from (f"{minute} {hour} * * 0", f"{minute} {hour} 1,15 * *", f"{minute} */6 * * 6,0")


def expected(expression: str, zone: str) -> list[datetime]:
    """By the other library. Of a time that comes twice, it takes both; here the first counts, unless the expression
    follows the hours (its minute or hour begins with a star). What lies in the gap it leaves out where they do."""
    follows = any(field.startswith("*") for field in expression.split()[:2])
    found: list[datetime] = []
    named: set[datetime] = set()
    moments = croniter(expression, START.astimezone(ZoneInfo(zone)))
    while (local := moments.get_next(datetime)) < END:
        clock = local.replace(tzinfo=None, fold=0)
        if follows and not croniter.match(expression, clock):
            continue  # moved out of the gap
        if follows or clock not in named:
            found.append(local.astimezone(UTC))
        named.add(clock)
    return found


class Clock:
    """What the beats take for now: the next time at which something is due."""

    def __init__(self) -> None:
        self.now = START


def beat(clock: Clock, barrier: threading.Barrier, number: int) -> None:
    try:
        tick_on(clock, barrier, number)
    except BaseException:
        barrier.abort()
        raise


def tick_on(clock: Clock, barrier: threading.Barrier, number: int) -> None:
    """All beats fire all that is due, at once, until nothing is; then time goes on. One of them dies now and then."""
    random = Random(number)
    while clock.now < END:
        with suppress(StopIteration):
            while True:
                with suppress(InterruptedError, DBAPIError):
                    fire_one(clock, random)
        if barrier.wait() == 0:
            advance(clock)
        barrier.wait()


def fire_one(clock: Clock, random: Random) -> None:
    with get_db_session(actor="beat", actor_type="beat") as session:
        if firing.fire_next(session, now=clock.now) is None:
            raise StopIteration
        if random.random() < 0.02:
            raise InterruptedError


def advance(clock: Clock) -> None:
    with get_db_session() as session:
        following = session.scalar(select(func.min(Schedule.next_run_at)))
        # The work is done by then: no run waits for another.
        done = update(Job).where(Job.state == JobState.QUEUED)
        session.execute(done.values(state=JobState.SUCCEEDED, outcome=Outcome.OK, finished_at=func.now()))
    assert following is not None
    assert following > clock.now
    clock.now = following


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_time_is_fired_once_by_three_beats_as_another_library_says(database, session, anna, sql):
    random = Random(7)
    made = expressions(random)
    wanted: dict[str, list[datetime]] = {}
    for number in range(SCHEDULES):
        values: dict[str, Any] = {"cron": next(made), "timezone": random.choice(ZONES)}
        if number % 10 == 9:
            values = {"every": "7h"} if number % 20 == 9 else {"every": "23h"}
        name = f"s{number}"
        schedules.register(
            session, user_id=anna.id, now=START, name=name, overlap="queue", task={"name": "t", "queue": "q"}, **values
        )
        if "cron" in values:
            wanted[name] = expected(values["cron"], values["timezone"])
        else:
            step = timedelta(hours=7 if values["every"] == "7h" else 23)
            wanted[name] = [START + n * step for n in range(1, int((END - START) / step) + 1)]
            wanted[name] = [each for each in wanted[name] if each < END]
    session.commit()

    clock, barrier = Clock(), threading.Barrier(BEATS)
    with ThreadPoolExecutor(BEATS) as pool:
        for done in [pool.submit(beat, clock, barrier, number) for number in range(BEATS)]:
            done.result()

    found: dict[str, list[datetime]] = defaultdict(list)
    rows = sql("SELECT s.name, r.fire_at, r.outcome FROM schedule_runs r JOIN schedules s ON s.id = r.schedule_id")
    for name, fire_at, outcome in sorted(rows):
        assert outcome == "enqueued", (name, fire_at)
        found[name].append(fire_at)
    assert set(found) == set(wanted)
    for name, times in wanted.items():
        assert found[name] == times, name
    assert sql("SELECT count(*), count(DISTINCT id) FROM jobs") == [(len(rows), len(rows))]
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'schedule_run.created'") == [(len(rows),)]
    assert len(rows) > 3000
