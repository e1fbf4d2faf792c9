"""`db.ledger.Ledger`: one connection that opens itself again, and repeats what may be repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from db.ledger import Held, Ledger, clean, host_key, is_gone, process_key, until
from tests.conftest import SCHEMA


class HardOfHearing(Ledger):
    """Loses the first answer of every call, after the database has committed it."""

    lost = 0

    def _connect(self) -> Any:
        connection = super()._connect()
        ledger = self

        class Line:
            def execute(self, *call: Any) -> Any:
                answer = connection.execute(*call)
                ledger.lost += 1
                if ledger.lost % 2:
                    raise psycopg.OperationalError("the line went dead")
                return answer

        return Line()


@pytest.fixture
def hard_of_hearing(database):
    made = HardOfHearing(database.url, SCHEMA)
    yield made
    made.close()


def backends(jobs, application_name: str) -> list[int]:
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    return [pid for (pid,) in jobs.app.execute(query, [application_name]).fetchall()]


def test_every_call_whose_answer_was_lost_is_repeated_and_gets_the_same_answer(jobs, hard_of_hearing):
    job_id, token = jobs.add(args=[1]), uuid4()
    claim = jobs.claim(job_id, token, ledger=hard_of_hearing)
    assert (claim.verdict, claim.attempt, claim.args) == ("run", 1, [1])
    assert hard_of_hearing.begin(job_id, 1, token, ["1:1"]) == "go"
    assert hard_of_hearing.finish(job_id, 1, token, "ok") == ("succeeded", ())
    assert hard_of_hearing.lost == 6
    assert jobs.actions(job_id) == ["enqueued", "started", "succeeded"]


def test_a_heartbeat_is_not_repeated(jobs, hard_of_hearing):
    held = jobs.take(jobs.add())
    with pytest.raises(psycopg.OperationalError):
        hard_of_hearing.heartbeat(held.id, held.attempt, held.token)
    assert hard_of_hearing.lost == 1


def test_a_connection_that_was_cut_is_opened_again(jobs, database):
    ledger = Ledger(database.url, SCHEMA, application_name="to be cut")
    job_id = jobs.add()
    ledger.due_queues()
    (first,) = backends(jobs, "to be cut")
    jobs.app.execute("SELECT pg_terminate_backend(%s)", [first])
    assert jobs.claim(job_id, ledger=ledger).verdict == "run"
    assert backends(jobs, "to be cut") != [first]
    ledger.close()


def test_a_call_that_is_cut_in_the_middle_is_repeated(jobs, crowd, database):
    ledger = Ledger(database.url, SCHEMA, application_name="cut in the middle")
    job_id = jobs.add()
    with crowd.transaction() as first:
        first.execute("SELECT FROM jobs WHERE id = %s FOR NO KEY UPDATE", [job_id])
        answer = crowd.start(lambda: jobs.claim(job_id, ledger=ledger))
        crowd.wait_until_one_waits()
        (pid,) = backends(jobs, "cut in the middle")
        jobs.app.execute("SELECT pg_terminate_backend(%s)", [pid])
        first.rollback()
    assert answer.result(10).verdict == "run"
    ledger.close()


def test_a_database_that_stays_away_is_an_error_after_the_second_try(database):
    ledger = Ledger(database.url.replace(database.name, "no_such_database"), SCHEMA)
    with pytest.raises(psycopg.OperationalError):
        ledger.due_queues()


def test_patience_decides_how_often_a_call_is_repeated(database):
    tries = []

    def patience(error: Exception, count: int) -> float | None:
        tries.append((type(error), count))
        return 0.0 if count < 4 else None

    ledger = Ledger(database.url.replace(database.name, "no_such_database"), SCHEMA)
    with pytest.raises(psycopg.OperationalError):
        ledger.begin(uuid4(), 1, uuid4(), [], patience=patience)
    assert tries == [(psycopg.OperationalError, count) for count in (1, 2, 3, 4)]


def test_until_waits_longer_each_time_up_to_a_second_and_stops_when_told():
    stop = False
    patience = until(lambda: stop)
    pauses = [patience(Exception(), tries) for tries in range(1, 7)]
    assert pauses == [0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    stop = True
    assert patience(Exception(), 1) is None


def test_no_statement_waits_for_ever(database):
    ledger = Ledger(database.url, SCHEMA)
    connection = ledger._connect()
    settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    shown = [next(iter(connection.execute(f"SHOW {name}").fetchone().values())) for name in settings]
    assert shown == ["5s", "2s", "5s"]
    ledger.close()


def test_a_forked_child_opens_a_connection_of_its_own(jobs, database):
    """In a fresh interpreter: forking this one, with its threads, is nothing to rely on."""
    program = """
import os, sys
from uuid import UUID
from db.ledger import Ledger
url, schema, one, two = sys.argv[1:]
ledger = Ledger(url, schema)
ledger.due_queues()
claim = lambda key: ledger.claim(UUID(key), "tests.task", UUID(key), worker="w", host="h", holders=[]).verdict
child = os.fork()
if child == 0:
    os._exit(0 if claim(one) == "run" else 1)
_, status = os.waitpid(child, 0)
sys.exit(status or (claim(two) != "run"))
"""
    ids = [str(jobs.add()), str(jobs.add())]
    done = subprocess.run([sys.executable, "-c", program, database.url, SCHEMA, *ids], timeout=60, check=False)
    assert done.returncode == 0


# What the workers of a host know of each other.


def test_running_jobs_are_told_by_host(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.take(jobs.add(lock_key="k"))
    jobs.add()
    assert jobs.ledger.held_here("another host") == []
    here = jobs.ledger.held_here("host one")
    assert len(here) == 2
    assert Held(held.token, ("1:1", "2:2")) in here


def test_a_process_is_gone_when_it_has_ended_or_its_number_has_another_owner():
    assert not is_gone(process_key(os.getpid()))
    child = subprocess.Popen([sys.executable, "-c", ""])
    key = process_key(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(key)  # a zombie holds nothing
    child.wait()
    assert is_gone(key)
    assert is_gone(f"{os.getpid()}:1")


def test_a_process_that_is_hidden_from_us_is_not_gone(monkeypatch):
    """Another user's, where `/proc` shows only one's own (hidepid): taken for dead, its job would start again."""
    monkeypatch.setattr("db.ledger._start_ticks", lambda _pid: None)

    def refuse(_pid, _signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not is_gone("4711:1")


def test_processes_of_one_kernel_have_one_host_key():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(host_key).result() == host_key()
    assert "/" in host_key()


def test_a_process_that_lives_is_told_until_it_says_goodbye_or_a_day_has_passed(jobs):
    key = str(uuid4())
    jobs.ledger.say_alive(key, "worker", "w", "h", 1, {"queues": ["a"]})
    jobs.ledger.say_alive(key, "worker", "w", "h", 1, {"queues": ["b"]})
    query = "SELECT info FROM processes WHERE id = %s"
    assert jobs.owner.execute(query, [key]).fetchall() == [({"queues": ["b"]},)]
    jobs.ledger.say_gone(key)
    assert jobs.owner.execute(query, [key]).fetchall() == []
    jobs.ledger.say_alive(key, "worker", "w", "h", 1, {})
    jobs.owner.execute("UPDATE processes SET seen_at = now() - interval '25 hours' WHERE id = %s", [key])
    jobs.ledger.say_alive(str(uuid4()), "worker", "w", "h", 1, {})
    assert jobs.owner.execute(query, [key]).fetchall() == []


def test_a_worker_writes_into_the_trail_in_its_own_name(jobs):
    jobs.ledger.audit("message.dropped", "message", "unknown", {"count": 3}, "worker one")
    query = "SELECT actor_type, actor, details FROM audit_logs WHERE action = 'message.dropped'"
    assert jobs.owner.execute(query).fetchall() == [("worker", "worker one", {"count": 3})]


# Text.


@pytest.mark.parametrize(
    ("text", "kept"), [(None, None), ("", ""), ("café", "café"), ("a\0b", "a�b"), ("half \ud83d", "half ?")]
)
def test_text_is_made_into_what_postgresql_can_hold(text, kept):
    assert clean(text) == kept
