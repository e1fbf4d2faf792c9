"""Enqueueing: in the caller's transaction, repeatable by id, at most one by unique key."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from db.connection import audit_context
from db.errors import InvalidInput
from db.repositories.jobs import ENQUEUED, MAX_ARGS_BYTES, JobRepository, JobSpec
from db.states import JobState
from tests.db.ledger.conftest import TASK, enqueue

ARGUMENT = f"argument {uuid4()}"


def in_(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


def test_a_job_exists_when_its_callers_transaction_commits_and_not_before(jobs, crowd):
    with crowd.transaction() as caller:
        job_id, created = enqueue(caller)
        assert created
        assert jobs.claim(job_id).verdict == "unknown"
        caller.commit()
        assert jobs.claim(job_id).verdict == "run"


def test_a_job_of_a_transaction_that_was_rolled_back_never_was(jobs, crowd):
    with crowd.transaction() as caller:
        job_id, _ = enqueue(caller)
        caller.rollback()
    assert jobs.claim(job_id).verdict == "unknown"
    assert jobs.actions(job_id) == []


def test_enqueueing_with_the_same_id_again_changes_nothing(jobs):
    job_id = uuid4()
    assert enqueue(jobs.app, id=job_id, args=[1]) == (job_id, True)
    assert enqueue(jobs.app, id=job_id, args=[2]) == (job_id, False)
    assert jobs.row(job_id).args == [1]
    assert jobs.actions(job_id) == ["enqueued"]


def test_enqueueing_with_the_same_id_after_the_job_has_ended_does_not_start_it_again(jobs):
    job_id = jobs.add()
    jobs.finish(jobs.take(job_id))
    assert enqueue(jobs.app, id=job_id) == (job_id, False)
    assert jobs.state(job_id) == ("succeeded", "ok")


def test_the_relay_gives_a_caller_who_rings_by_himself_two_seconds(jobs):
    assert 1 < jobs.row(jobs.add(rung=True)).ring_in <= 2
    assert jobs.row(jobs.add()).ring_in <= 0


def test_a_job_with_a_time_is_first_rung_at_that_time(jobs):
    row = jobs.row(jobs.add(run_at=in_(hours=1), rung=True))
    assert row.ring_at == row.run_at
    assert 3590 < row.run_in <= 3600


def test_a_time_that_has_passed_means_now(jobs):
    row = jobs.row(jobs.add(run_at=in_(days=-1)))
    assert -5 < row.run_in <= 0
    assert jobs.claim(row.id).verdict == "run"


@pytest.mark.parametrize("end", ["queued", "running"])
def test_a_live_unique_key_stands_for_one_job_until_that_has_ended(jobs, end):
    first = jobs.add(unique_key="k")
    held = jobs.take(first) if end == "running" else None
    assert enqueue(jobs.app, unique_key="k") == (first, False)
    if held:
        jobs.finish(held)
    else:
        jobs.ledger.cancel(first)
    second, created = enqueue(jobs.app, unique_key="k")
    assert created
    assert second != first


def test_a_unique_key_while_queued_lets_a_change_that_comes_during_the_run_wait(jobs):
    first = jobs.add(unique_key="k", unique_while="queued")
    assert enqueue(jobs.app, unique_key="k", unique_while="queued") == (first, False)
    jobs.take(first)
    second, created = enqueue(jobs.app, unique_key="k", unique_while="queued")
    assert created
    assert enqueue(jobs.app, unique_key="k", unique_while="queued") == (second, False)


@pytest.mark.parametrize("how", ["retry", "interruption", "rescue"])
def test_a_job_may_wait_again_although_another_of_its_unique_key_waits(jobs, how):
    first = jobs.add(unique_key="k", unique_while="queued", idempotent=True)
    held = jobs.take(first)
    jobs.add(unique_key="k", unique_while="queued")
    if how == "rescue":
        jobs.lose_lease(held)
        jobs.rescue()
    else:
        assert jobs.finish(held, {"retry": "failed", "interruption": "interrupted"}[how]) == "queued"
    assert jobs.state(first)[0] == "queued"


def test_what_waits_to_be_tried_again_stands_for_no_new_request(jobs):
    first = jobs.add(unique_key="k", unique_while="queued", idempotent=True)
    jobs.finish(jobs.take(first), "failed")
    second, created = enqueue(jobs.app, unique_key="k", unique_while="queued")
    assert created
    assert enqueue(jobs.app, unique_key="k", unique_while="queued") == (second, False)


def test_keys_of_the_two_kinds_do_not_meet(jobs):
    first = jobs.add(unique_key="k")
    second, created = enqueue(jobs.app, unique_key="k", unique_while="queued")
    assert created
    assert first != second


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_transactions_with_one_unique_key_the_second_waits_for_the_first(jobs, crowd, commits):
    with crowd.transaction() as one, crowd.transaction() as two:
        first, _ = enqueue(one, unique_key="k")
        answer = crowd.start(lambda: enqueue(two, unique_key="k"))
        crowd.wait_until_one_waits()
        one.commit() if commits else one.rollback()
        second, created = answer.result(10)
        two.commit()
    assert (second == first) is commits
    assert created is not commits
    assert jobs.row(second).state == "queued"


def test_a_request_that_meets_the_end_of_the_holder_becomes_a_job_of_its_own(jobs, crowd):
    first = jobs.add(unique_key="k")
    held = jobs.take(first)
    with crowd.transaction() as ending, crowd.transaction() as two:
        ending.execute("SELECT ops_finish(%s, 1, %s, 'ok')", [first, held.token])
        answer = crowd.start(lambda: enqueue(two, unique_key="k"))
        crowd.wait_until_one_waits()
        ending.commit()
        second, created = answer.result(10)
        two.commit()
    assert created
    assert second != first


@pytest.mark.parametrize(
    "nonsense",
    [
        {"priority": 10},
        {"priority": -1},
        {"max_attempts": 0},
        {"timeout_seconds": 0},
        {"lease_seconds": 0.5},
        {"unique_while": "sometimes"},
    ],
    ids=str,
)
def test_nonsense_is_refused_by_the_table(jobs, nonsense):
    with pytest.raises(psycopg.errors.CheckViolation):
        jobs.add(**nonsense)


# As sessions see it.


def test_a_session_writes_a_job_with_everything_it_was_given(session):
    when = in_(hours=2)
    spec = JobSpec(
        task=TASK, queue="a", args=[1, "two"], kwargs={"three": None}, run_at=when, expires_at=in_(hours=3), priority=7,
        lock_key="lock", unique_key="once", unique_while="queued", idempotent=True, max_attempts=5, max_rescues=0,
        timeout_seconds=60, lease_seconds=30.0, backoff_seconds=0.5,
    )  # fmt: skip
    enqueued = JobRepository(session).enqueue(spec)
    job = JobRepository(session).require(enqueued.id)
    for name in ("task", "queue", "args", "kwargs", "run_at", "expires_at", "priority", "lock_key", "unique_key",
                 "unique_while", "idempotent", "max_attempts", "max_rescues", "timeout_seconds", "lease_seconds",
                 "backoff_seconds"):  # fmt: skip
        assert getattr(job, name) == getattr(spec, name), name
    assert job.state is JobState.QUEUED


def test_a_session_remembers_the_bells_of_new_jobs_that_are_due(session):
    repository = JobRepository(session)
    first = repository.enqueue(JobSpec(TASK, "a", unique_key="k", priority=3))
    repository.enqueue(JobSpec(TASK, "a", unique_key="k"))
    repository.enqueue(JobSpec(TASK, "a", run_at=in_(hours=1)))
    (bell,) = session.info[ENQUEUED]
    assert (bell.id, bell.task, bell.queue, bell.priority) == (first.id, TASK, "a", 3)


def test_a_job_carries_the_context_of_whoever_asked_for_it(session):
    audit_context(session, actor="ada", actor_id=7, ip="192.0.2.1", request_id="r-1", task_id=str(uuid4()), action="x")
    enqueued = JobRepository(session).enqueue(JobSpec(TASK, "a"))
    context = JobRepository(session).require(enqueued.id).context
    assert context["actor"] == "ada"
    assert context["actor_id"] == 7
    assert context["ip_address"] == "192.0.2.1"
    assert context["request_id"] == "r-1"
    # Through which task it was asked for is that task's story, not this one's.
    assert not {"task_id", "action"} & set(context)


@pytest.mark.parametrize(
    "value", [object(), float("nan"), {1, 2}, "x" * (MAX_ARGS_BYTES + 1)], ids=["object", "nan", "set", "size"]
)
def test_arguments_that_the_row_cannot_hold_are_refused_before_the_database_is_asked(session, value):
    with pytest.raises(InvalidInput, match=TASK):
        JobRepository(session).enqueue(JobSpec(TASK, "a", args=[value]))
    assert not session.in_transaction()


def test_cancelling_in_a_session_counts_when_the_session_commits(session, jobs):
    job_id = jobs.add(lock_key="k")
    waiter = jobs.add(lock_key="k")
    assert JobRepository(session).cancel(job_id, "not needed") is JobState.CANCELLED
    assert jobs.row(job_id).state == "queued"
    session.commit()
    assert jobs.row(job_id).state == "cancelled"
    assert [bell.id for bell in session.info[ENQUEUED]] == [waiter]
    assert JobRepository(session).cancel(job_id) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [({"queue": "amq.topic"}, "amq"), ({"lease_seconds": 1e9}, "lease"), ({"priority": 10}, "priority"),
     ({"expires_at": datetime(9999, 12, 31, tzinfo=UTC)}, "years")],
)  # fmt: skip
def test_what_the_database_refuses_is_one_line_that_shows_no_argument(session, given, said):
    with pytest.raises(InvalidInput, match=said) as error:
        JobRepository(session).enqueue(JobSpec(**{"task": TASK, "queue": "a", "args": [ARGUMENT]} | given))
    assert ARGUMENT not in "".join(traceback.format_exception(error.value))
    assert "\n" not in str(error.value)
