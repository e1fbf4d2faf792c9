"""A tick runs once per interval, however many ask for it, and says what it changed."""

from __future__ import annotations

from typing import Any

import pytest

from db.models import User
from tasks.ticks import tick


def add_user(session) -> dict[str, Any]:
    session.add(User(username="one", email="one@example.org"))
    return {"users": 1}


def test_of_two_in_one_interval_one_runs(database, sql):
    assert tick("test", 60, add_user) == {"users": 1}
    assert tick("test", 60, add_user) is None
    assert sql("SELECT count(*) FROM users") == [(1,)]
    assert sql("SELECT actor, actor_type, details FROM audit_logs WHERE action = 'tick.changed'") == [
        ("tick test", "beat", {"users": 1})
    ]
    assert sql("SELECT DISTINCT actor FROM audit_logs WHERE resource_type = 'user'") == [("tick test",)]


def test_idle_runs_are_counted_and_told_once_an_hour(database, sql):
    for _ in range(5):
        assert tick("test", 0, lambda _: None) is None
    assert sql("SELECT action, details FROM audit_logs WHERE resource_type = 'tick'") == [("tick.idle", {"runs": 1})]
    assert sql("SELECT idle_runs FROM ticks") == [(4,)]
    sql("UPDATE ticks SET reported_at = now() - interval '61 minutes'")
    tick("test", 0, lambda _: None)
    assert sql("SELECT details FROM audit_logs WHERE action = 'tick.idle' ORDER BY id") == [
        ({"runs": 1},),
        ({"runs": 5},),
    ]


def test_work_that_fails_changes_nothing_and_is_tried_again_in_the_next_interval(database, sql):
    def fail(session) -> None:
        add_user(session)
        session.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tick("test", 60, fail)
    assert sql("SELECT count(*) FROM users") == [(0,)]
    assert tick("test", 60, add_user) is None
    sql("UPDATE ticks SET last_run_at = now() - interval '61 seconds'")
    assert tick("test", 60, add_user) == {"users": 1}
