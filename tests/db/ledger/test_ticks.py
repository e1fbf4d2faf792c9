"""Ticks: any number of beats ask, one runs per interval, and the trail is told what was done."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import timedelta
from threading import Barrier

import pytest
from psycopg.types.json import Jsonb

from db.connection import get_db_session
from db.repositories.ticks import TickRepository

MINUTE = timedelta(minutes=1)


@pytest.fixture
def name(request) -> str:
    """A tick of this test's own: entries of others stay in the trail."""
    return str(request.node.name)


def is_due(jobs, name: str) -> bool:
    return bool(jobs.app.execute("SELECT ops_tick_due(%s, %s)", [name, MINUTE]).fetchone()[0])


def done(jobs, name: str, details: dict | None = None) -> None:
    jobs.app.execute("SELECT ops_tick_done(%s, %s)", [name, None if details is None else Jsonb(details)])


def entries(jobs, name: str) -> list[tuple]:
    query = "SELECT action, details FROM audit_logs WHERE resource_type = 'tick' AND resource_id = %s ORDER BY id"
    return jobs.owner.execute(query, [name]).fetchall()


def test_a_clock_that_is_set_back_stops_no_tick(jobs, name):
    is_due(jobs, name)
    jobs.owner.execute("UPDATE ticks SET last_run_at = now() + interval '1 hour' WHERE name = %s", [name])
    assert [is_due(jobs, name) for _ in range(2)] == [True, False]


def test_a_tick_is_due_for_one_caller_per_interval(jobs, name):
    assert [is_due(jobs, name) for _ in range(3)] == [True, False, False]


def test_a_tick_is_due_again_a_little_before_its_interval_is_over(jobs, name):
    """Two beats of one interval drift: a tick that waits for the whole interval would skip every other one."""
    is_due(jobs, name)
    for ago, answer in (("50 s", False), ("55 s", True)):
        jobs.owner.execute(f"UPDATE ticks SET last_run_at = now() - interval '{ago}' WHERE name = %s", [name])
        assert is_due(jobs, name) is answer


def test_of_many_beats_one_runs(jobs, crowd, name):
    together = Barrier(6)

    def beat() -> bool:
        with crowd.transaction() as connection:
            together.wait(10)
            answer = connection.execute("SELECT ops_tick_due(%s, %s)", [name, MINUTE]).fetchone()[0]
            connection.commit()
        return bool(answer)

    beats: list[Future] = [crowd.start(beat) for _ in range(6)]
    assert sum(each.result(20) for each in beats) == 1


def test_a_tick_that_changed_something_leaves_an_entry(jobs, name):
    is_due(jobs, name)
    done(jobs, name, {"removed": 3})
    assert entries(jobs, name) == [("tick.changed", {"removed": 3})]


def test_idle_runs_leave_one_entry_an_hour_with_their_count(jobs, name):
    is_due(jobs, name)
    for _ in range(4):
        done(jobs, name)
    assert entries(jobs, name) == [("tick.idle", {"runs": 1})]
    jobs.owner.execute("UPDATE ticks SET reported_at = now() - interval '61 min' WHERE name = %s", [name])
    done(jobs, name)
    assert entries(jobs, name)[1:] == [("tick.idle", {"runs": 4})]


def test_a_run_that_changed_something_reports_the_idle_ones_before_it(jobs, name):
    is_due(jobs, name)
    done(jobs, name)
    done(jobs, name)
    jobs.owner.execute("UPDATE ticks SET reported_at = now() - interval '61 min' WHERE name = %s", [name])
    done(jobs, name, {"removed": 1})
    assert entries(jobs, name)[1:] == [("tick.changed", {"removed": 1}), ("tick.idle", {"runs": 1})]


def test_the_time_of_the_last_success_is_kept(jobs, name):
    is_due(jobs, name)
    (before,) = jobs.owner.execute("SELECT last_success_at FROM ticks WHERE name = %s", [name]).fetchone()
    done(jobs, name)
    (after,) = jobs.owner.execute("SELECT last_success_at FROM ticks WHERE name = %s", [name]).fetchone()
    assert (before, after is not None) == (None, True)


def test_sessions_run_ticks_as_beat(jobs, name):
    with get_db_session(actor=f"tick {name}", actor_type="beat") as session:
        assert TickRepository(session).due(name, MINUTE) is True
        assert TickRepository(session).due(name, MINUTE) is False
        TickRepository(session).done(name, {"removed": 1})
        TickRepository(session).done(name, None)
    rows = jobs.owner.execute(
        "SELECT action, actor_type, actor FROM audit_logs WHERE resource_id = %s ORDER BY id", [name]
    ).fetchall()
    assert rows == [("tick.changed", "beat", f"tick {name}"), ("tick.idle", "beat", f"tick {name}")]
