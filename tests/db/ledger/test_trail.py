"""Every transition leaves one entry, in its own transaction, in the name of whoever asked for the job."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.db.ledger.conftest import TASK, enqueue

ADA = {"actor_type": "user", "actor": "ada", "actor_id": 7, "client": "ada@laptop", "ip_address": "192.0.2.1",
       "user_agent": "ops/1", "request_id": "r-1"}  # fmt: skip
BOB = {"actor_type": "user", "actor": "bob"}


def as_(connection: psycopg.Connection, context: dict) -> None:
    """Say who acts, for the running transaction."""
    connection.execute("SELECT set_config('ops.context', %s, true)", [json.dumps(context)])


@pytest.fixture
def adas(jobs):
    """Enqueue a job in Ada's name."""

    def add(**given):
        with jobs.app.transaction():
            as_(jobs.app, ADA)
            return enqueue(jobs.app, **given)[0]

    return add


def test_every_step_of_a_life_leaves_one_entry(jobs):
    held = jobs.take_and_begin(jobs.add(idempotent=True))
    jobs.beat(held)
    jobs.finish(held, "failed", retry_in=timedelta())
    held = jobs.take(held.id)
    jobs.lose_lease(held)
    jobs.rescue()
    held = jobs.take_and_begin(held.id)
    jobs.ledger.cancel(held.id)
    jobs.finish(held, "cancelled")
    assert jobs.actions(held.id) == [
        "enqueued", "started", "retried", "started", "retried", "started", "cancel_requested", "cancelled",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "begun", "action"),
    [
        ("ok", True, "succeeded"), ("failed", True, "failed"), ("timeout", True, "failed"), ("lost", True, "lost"),
        ("interrupted", True, "failed"), ("interrupted", False, "retried"), ("cancelled", True, "cancelled"),
    ],
)  # fmt: skip
def test_an_end_is_called_what_it_is(jobs, outcome, begun, action):
    held = jobs.take(jobs.add())
    if begun:
        jobs.begin(held)
    jobs.finish(held, outcome)
    assert jobs.actions(held.id)[-1] == action


def test_an_expiry_is_told_apart_from_a_cancel(jobs):
    job_id = jobs.add(expires_at=datetime.now(UTC))
    jobs.rescue()
    assert jobs.actions(job_id) == ["enqueued", "expired"]


def test_entries_tell_task_attempt_worker_outcome_and_how_long_it_took(jobs):
    job_id = jobs.add(lock_key="k")
    jobs.change(job_id, "run_at = now() - interval '10 s', created_at = now() - interval '1 hour'")
    held = jobs.take_and_begin(job_id)
    jobs.change(job_id, "started_at = now() - interval '5 s'")
    jobs.finish(held, "failed", error="no space left")
    moves = {entry.action: entry for entry in jobs.entries(job_id) if entry.action != "job.updated"}
    started, failed = moves["job.started"], moves["job.failed"]
    assert started.changes == {"state": ["queued", "running"]}
    assert 10 <= started.details.pop("waited_seconds") < 15
    assert started.details == {"task": TASK, "attempt": 1, "worker": "worker one", "lock_key": "k"}
    assert failed.changes == {"state": ["running", "failed"]}
    assert 5 <= failed.details.pop("duration_seconds") < 10
    assert failed.details == {
        "task": TASK, "attempt": 1, "worker": "worker one", "outcome": "failed", "error": "no space left",
        "began": True, "lock_key": "k",
    }  # fmt: skip


def test_a_retry_tells_when_it_will_be_tried_again_and_whether_the_work_had_begun(jobs):
    held = jobs.take(jobs.add(idempotent=True))
    jobs.finish(held, "failed")
    details = jobs.entries(held.id)[-1].details
    assert datetime.fromisoformat(details["next_run_at"]) == jobs.row(held.id).run_at
    assert details["began"] is False


def test_what_a_worker_does_is_recorded_in_the_name_of_whoever_asked_for_the_job(jobs, adas):
    held = jobs.take_and_begin(adas())
    jobs.lose_lease(held)
    jobs.rescue()
    jobs.finish(held)
    entries = jobs.entries(held.id)
    assert [entry.action for entry in entries] == ["job.enqueued", "job.started", "job.lost", "job.late_result"]
    for entry in entries:
        assert (entry.actor_type, entry.actor, entry.actor_id) == ("user", "ada", 7)
        assert (entry.client, str(entry.ip_address), entry.user_agent) == ("ada@laptop", "192.0.2.1", "ops/1")
        assert (entry.request_id, entry.task_id, entry.db_user) == ("r-1", held.id, "ops_app")


def test_a_job_that_nobody_signed_is_the_databases_own(jobs):
    held = jobs.take(jobs.add())
    assert {(entry.actor_type, entry.actor) for entry in jobs.entries(held.id)} == {("database", "ops_app")}


def test_whoever_cancels_stands_in_the_trail_and_the_end_is_the_jobs_own_again(jobs, adas):
    held = jobs.take_and_begin(adas())
    with jobs.app.transaction():
        as_(jobs.app, BOB)
        jobs.app.execute("SELECT ops_cancel(%s, 'wrong version')", [held.id])
    jobs.finish(held, "cancelled")
    asked, ended = jobs.entries(held.id)[-2:]
    assert (asked.action, asked.actor, asked.details["reason"]) == ("job.cancel_requested", "bob", "wrong version")
    assert (ended.action, ended.actor) == ("job.cancelled", "ada")
    assert asked.task_id == ended.task_id == held.id


def test_bells_heartbeats_marks_and_refused_claims_leave_no_entry(jobs):
    held = jobs.take_and_begin(jobs.add(lock_key="k"))
    waiter = jobs.add(lock_key="k")
    for _ in range(3):
        jobs.beat(held)
        jobs.claim(waiter)
        jobs.all_due()
        jobs.ledger.relay("a", 200)
    jobs.change(held.id, "lease_until = now() - interval '1 min'")
    jobs.rescue()
    assert jobs.row(held.id).suspect_at is not None
    assert jobs.actions(held.id) == ["enqueued", "started"]
    assert jobs.actions(waiter) == ["enqueued"]


def test_a_repeated_cancel_leaves_one_entry(jobs):
    held = jobs.take(jobs.add())
    jobs.ledger.cancel(held.id)
    jobs.ledger.cancel(held.id)
    assert jobs.actions(held.id) == ["enqueued", "started", "cancel_requested"]


def test_an_entry_of_an_enqueued_job_shows_where_it_goes_but_no_arguments(jobs):
    job_id = jobs.add(args=["s3cret"], kwargs={"token": "s3cret"}, lock_key="k", unique_key="u")
    (entry,) = jobs.entries(job_id)
    assert entry.details == {"task": TASK, "queue": "a", "lock_key": "k", "unique_key": "u"}
    assert "s3cret" not in str(entry)


def test_a_transition_and_its_entry_are_there_together_or_not_at_all(jobs, crowd):
    job_id = jobs.add()
    with crowd.transaction() as worker:
        worker.execute("SELECT ops_claim(%s, 'tests.task', gen_random_uuid(), 'w', 'h', '{}')", [job_id])
        worker.rollback()
    assert jobs.actions(job_id) == ["enqueued"]
    assert jobs.row(job_id).state == "queued"


# By hand.


def test_a_state_that_is_changed_by_hand_is_recorded_like_any_other_move(jobs, adas):
    job_id = adas()
    jobs.owner.execute(
        "UPDATE jobs SET state = 'failed', outcome = 'lost', error = 'by hand', finished_at = now() WHERE id = %s",
        [job_id],
    )
    entry = jobs.entries(job_id)[-1]
    assert (entry.action, entry.changes) == ("job.lost", {"state": ["queued", "failed"]})
    assert (entry.db_user, entry.details["error"]) == ("ops_owner", "by hand")


def test_what_a_job_is_to_do_cannot_be_changed_without_a_trace(jobs):
    job_id = jobs.add(args=["s3cret"])
    jobs.change(job_id, "priority = 1, args = '[\"another s3cret\"]', lock_key = 'k', ring_at = now()")
    entry = jobs.entries(job_id)[-1]
    assert entry.action == "job.updated"
    assert entry.changes == {"priority": [5, 1], "args": ["[secret]", "[secret]"], "lock_key": [None, "k"]}


@pytest.mark.parametrize(
    "change",
    ["run_at = now() + interval '1 day'", "error = 'another'", "result = '1'", "failures = 0", "finished_at = now()"],
)
def test_what_came_of_a_job_cannot_be_changed_without_a_trace(jobs, change):
    held = jobs.take(jobs.add(idempotent=True, max_attempts=1))
    jobs.finish(held, "failed", error="no")
    before = len(jobs.entries(held.id))
    jobs.change(held.id, change)
    (entry,) = jobs.entries(held.id)[before:]
    assert (entry.action, list(entry.changes)) == ("job.updated", [change.split()[0]])


def test_a_cancel_that_is_taken_back_by_hand_is_recorded(jobs):
    held = jobs.take(jobs.add())
    jobs.ledger.cancel(held.id)
    jobs.change(held.id, "cancel_requested_at = NULL")
    entry = jobs.entries(held.id)[-1]
    assert (entry.action, list(entry.changes)) == ("job.updated", ["cancel_requested_at"])


def test_a_change_that_changes_nothing_leaves_no_entry(jobs):
    job_id = jobs.add()
    jobs.change(job_id, "priority = priority, error = error, state = state")
    assert jobs.actions(job_id) == ["enqueued"]


def test_a_job_that_is_removed_leaves_an_entry(jobs):
    held = jobs.take(jobs.add())
    jobs.owner.execute("DELETE FROM jobs WHERE id = %s", [held.id])
    entry = jobs.entries(held.id)[-1]
    assert (entry.action, entry.details) == ("job.deleted", {"task": TASK, "state": "running", "attempt": 1})


def test_emptying_the_table_leaves_an_entry_with_the_count(jobs):
    jobs.add()
    jobs.add()
    jobs.owner.execute("TRUNCATE jobs CASCADE")
    query = "SELECT details FROM audit_logs WHERE action = 'job.truncated' ORDER BY id DESC LIMIT 1"
    assert jobs.owner.execute(query).fetchone() == ({"rows": 2},)


def test_jobs_that_are_written_by_one_statement_leave_one_entry_each(jobs):
    jobs.owner.execute(
        "INSERT INTO jobs (id, task, queue) SELECT gen_random_uuid(), 't', 'a' FROM generate_series(1, 3)"
    )
    ids = [row[0] for row in jobs.owner.execute("SELECT id FROM jobs").fetchall()]
    assert [jobs.actions(job_id) for job_id in ids] == [["enqueued"]] * 3
