"""A claim answers one verdict, decides the lock key, and keeps the order of those who wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest


def in_(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


def test_a_claim_takes_the_job_for_as_long_as_its_lease(jobs):
    job_id = jobs.add(args=[1], kwargs={"b": 2}, lock_key="k", lease_seconds=30, timeout_seconds=60)
    token = uuid4()
    claim = jobs.claim(job_id, token)
    assert (claim.verdict, claim.attempt, claim.args, claim.kwargs) == ("run", 1, [1], {"b": 2})
    assert (claim.lock_key, claim.lease_seconds, claim.timeout_seconds) == ("k", 30.0, 60)
    row = jobs.row(job_id)
    assert (row.state, row.attempt, row.lease_token) == ("running", 1, token)
    assert (row.worker, row.worker_host, row.holders) == ("worker one", "host one", ["1:1"])
    assert 29 < (row.lease_until - row.now).total_seconds() <= 30
    assert 59 < row.deadline_in <= 60
    assert row.began_at is None


def test_a_claim_whose_answer_was_lost_is_repeated_with_the_same_token(jobs):
    job_id, token = jobs.add(args=[1]), uuid4()
    first = jobs.claim(job_id, token)
    assert jobs.claim(job_id, token) == first
    assert jobs.actions(job_id) == ["enqueued", "started"]


def test_a_job_that_runs_is_nobody_elses(jobs):
    job_id = jobs.add()
    jobs.take(job_id)
    claim = jobs.claim(job_id)
    assert (claim.verdict, claim.attempt, claim.kwargs) == ("duplicate", 1, None)


@pytest.mark.parametrize("outcome", ["ok", "failed", "cancelled"])
def test_a_job_that_has_ended_is_a_duplicate(jobs, outcome):
    job_id = jobs.add()
    jobs.finish(jobs.take(job_id), outcome)
    before = jobs.row(job_id)
    assert jobs.claim(job_id).verdict == "duplicate"
    assert jobs.row(job_id).finished_at == before.finished_at


def test_a_job_that_is_not_there_is_unknown(jobs):
    claim = jobs.claim(uuid4())
    assert (claim.verdict, claim.attempt, claim.bells) == ("unknown", 0, ())


def test_a_bell_that_names_another_task_starts_nothing(jobs):
    job_id = jobs.add()
    assert jobs.claim(job_id, task="tests.another").verdict == "wrong_task"
    assert jobs.row(job_id).state == "queued"


def test_a_job_whose_time_has_not_come_waits_on(jobs):
    job_id = jobs.add(run_at=in_(hours=1))
    jobs.change(job_id, "ring_at = now()")
    assert jobs.claim(job_id).verdict == "not_due"
    row = jobs.row(job_id)
    assert (row.state, row.ring_at) == ("queued", row.run_at)


def test_a_job_whose_time_has_passed_ends_as_expired(jobs):
    job_id = jobs.add(expires_at=in_(seconds=-1))
    assert jobs.claim(job_id).verdict == "expired"
    row = jobs.row(job_id)
    assert (row.state, row.outcome, row.error) == ("cancelled", "expired", "its time passed before it started")


def test_a_job_that_expires_hands_its_key_to_the_next(jobs):
    job_id = jobs.add(lock_key="k", expires_at=in_(seconds=-1))
    waiter = jobs.add(lock_key="k")
    assert [bell.id for bell in jobs.claim(job_id).bells] == [waiter]


def test_a_job_that_expires_while_it_waits_to_be_tried_again_says_so(jobs):
    job_id = jobs.add(idempotent=True, expires_at=in_(hours=1))
    jobs.finish(jobs.take(job_id), "failed", retry_in=timedelta())
    jobs.change(job_id, "expires_at = now()")
    assert jobs.claim(job_id).verdict == "expired"
    assert jobs.row(job_id).error == "its time passed while it waited to be tried again"


def test_a_new_attempt_forgets_how_the_one_before_ended(jobs):
    job_id = jobs.add(idempotent=True)
    jobs.finish(jobs.take_and_begin(job_id), "failed", error="no", retry_in=timedelta())
    assert jobs.state(job_id) == ("queued", "failed")
    jobs.take(job_id)
    row = jobs.row(job_id)
    assert (row.attempt, row.outcome, row.error, row.began_at) == (2, None, None, None)


def test_the_fence_grows_with_every_claim(jobs):
    first = jobs.claim(jobs.add(lock_key="k"))
    second = jobs.claim(jobs.add())
    assert 0 < first.fence < second.fence


# Lock keys.


def test_the_head_that_meets_a_busy_key_is_due_for_a_ring_at_once(jobs):
    jobs.take(jobs.add(lock_key="k"))
    head = jobs.add(lock_key="k", rung=True)
    claim = jobs.claim(head)
    assert (claim.verdict, claim.bells) == ("lock_busy", ())
    assert jobs.row(head).ring_in <= 0


def test_those_behind_the_head_are_looked_at_again_in_fifteen_seconds(jobs):
    held = jobs.take(jobs.add(lock_key="k"))
    jobs.add(lock_key="k")
    behind = jobs.add(lock_key="k")
    assert jobs.claim(behind).verdict == "lock_busy"
    assert 14 < jobs.row(behind).ring_in <= 15
    jobs.finish(held)
    assert jobs.claim(behind).verdict == "not_head"
    assert 14 < jobs.row(behind).ring_in <= 15


def test_a_claim_that_is_not_the_heads_rings_the_head_if_its_time_has_come(jobs):
    head = jobs.add(lock_key="k", priority=2)
    behind = jobs.add(lock_key="k")
    (bell,) = jobs.claim(behind).bells
    assert (bell.id, bell.queue, bell.priority) == (head, "a", 2)


def test_a_head_whose_own_bell_is_under_way_is_not_rung_by_others(jobs):
    jobs.add(lock_key="k", rung=True)
    assert jobs.claim(jobs.add(lock_key="k")).bells == ()


def test_those_who_wait_go_by_priority_and_then_by_age(jobs):
    old, urgent, older = jobs.add(lock_key="k"), jobs.add(lock_key="k", priority=1), jobs.add(lock_key="k")
    order = []
    while waiting := [each for each in (older, old, urgent) if each not in order]:
        claims = {each: jobs.claim(each, each) for each in waiting}
        (runs,) = [each for each, claim in claims.items() if claim.verdict == "run"]
        order.append(runs)
        jobs.ledger.finish(runs, 1, runs, "ok")
    assert order == [urgent, old, older]


def test_a_queue_that_nobody_serves_holds_up_no_other_queue(jobs):
    jobs.add(lock_key="k", queue="nobody serves this", priority=0)
    assert jobs.claim(jobs.add(lock_key="k")).verdict == "run"


def test_a_job_that_is_not_due_holds_up_nobody(jobs):
    jobs.add(lock_key="k", priority=0, run_at=in_(hours=1))
    assert jobs.claim(jobs.add(lock_key="k")).verdict == "run"


def test_keys_are_independent_of_each_other(jobs):
    jobs.take(jobs.add(lock_key="k"))
    assert jobs.claim(jobs.add(lock_key="l")).verdict == "run"
    assert jobs.claim(jobs.add()).verdict == "run"


# At the same time.


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_claims_of_one_job_the_second_waits_for_the_first(jobs, crowd, commits):
    job_id = jobs.add()
    with crowd.transaction() as first, crowd.ledger() as second:
        first.execute("SELECT ops_claim(%s, 'tests.task', %s, 'w', 'h', '{}')", [job_id, uuid4()])
        answer = crowd.start(lambda: jobs.claim(job_id, ledger=second))
        crowd.wait_until_one_waits()
        first.commit() if commits else first.rollback()
        assert answer.result(10).verdict == ("duplicate" if commits else "run")


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_claims_of_one_key_the_loser_sees_no_error(jobs, crowd, commits):
    one, two = jobs.add(lock_key="k", queue="a"), jobs.add(lock_key="k", queue="b", rung=True)
    with crowd.transaction() as first, crowd.ledger() as second:
        first.execute("SELECT ops_claim(%s, 'tests.task', %s, 'w', 'h', '{}')", [one, uuid4()])
        answer = crowd.start(lambda: jobs.claim(two, ledger=second))
        crowd.wait_until_one_waits()
        first.commit() if commits else first.rollback()
        assert answer.result(10).verdict == ("lock_raced" if commits else "run")
    if commits:
        row = jobs.row(two)
        assert (row.state, row.attempt, row.ring_in <= 0) == ("queued", 0, True)
        assert jobs.actions(two) == ["enqueued"]


def test_one_of_many_claims_of_a_key_runs(jobs, crowd):
    ids = [jobs.add(lock_key="k", queue=f"queue {number}") for number in range(8)]

    def claim(job_id):
        with crowd.ledger() as ledger:
            return jobs.claim(job_id, ledger=ledger).verdict

    answers = [future.result(20) for future in [crowd.start(lambda j=j: claim(j)) for j in ids]]
    assert answers.count("run") == 1
    assert set(answers) <= {"run", "lock_busy", "lock_raced"}
