"""How an attempt ends: success beats cancel, cancel beats retry, and whoever waits for the key is rung."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from tests.db.ledger.conftest import Held


def in_(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


@pytest.mark.parametrize(
    ("outcome", "state"), [("ok", "succeeded"), ("failed", "failed"), ("timeout", "failed"), ("cancelled", "cancelled")]
)
def test_an_attempt_that_may_not_be_repeated_ends_its_job(jobs, outcome, state):
    held = jobs.take_and_begin(jobs.add())
    assert jobs.finish(held, outcome, error="why" if outcome != "ok" else None) == state
    row = jobs.row(held.id)
    assert (row.state, row.outcome) == (state, outcome)
    assert row.error == (None if outcome == "ok" else "why")
    assert (row.lease_token, row.lease_until, row.suspect_at) == (None, None, None)
    assert -5 < row.finished_in <= 0


def test_a_result_is_kept_with_a_success_only(jobs):
    held = jobs.take(jobs.add())
    jobs.finish(held, result={"version": [1, None]})
    assert jobs.row(held.id).result == {"version": [1, None]}
    held = jobs.take(jobs.add())
    jobs.finish(held, "failed", result={"half": "done"})
    assert jobs.row(held.id).result is None


def test_an_error_is_cut_and_cleaned_before_it_is_kept(jobs):
    held = jobs.take(jobs.add())
    jobs.finish(held, "failed", error="a\0b\udc80" + "x" * 5000)
    error = jobs.row(held.id).error
    assert error.startswith("a�b?x")
    assert len(error) == 4000


def test_an_attempt_that_ends_without_a_word_is_explained_by_its_outcome(jobs):
    held = jobs.take(jobs.add())
    jobs.finish(held, "failed")
    assert jobs.row(held.id).error == "failed"


def test_an_outcome_that_is_none_is_refused(jobs):
    held = jobs.take(jobs.add())
    with pytest.raises(psycopg.errors.CheckViolation):
        jobs.finish(held, "splendid")
    assert jobs.row(held.id).state == "running"


# Retries.


@pytest.mark.parametrize("outcome", ["failed", "timeout"])
def test_an_idempotent_job_is_tried_again_until_its_attempts_are_used_up(jobs, outcome):
    job_id = jobs.add(idempotent=True, max_attempts=3)
    states = [jobs.finish(jobs.take_and_begin(job_id), outcome, retry_in=timedelta()) for _ in range(3)]
    assert states == ["queued", "queued", "failed"]
    row = jobs.row(job_id)
    assert (row.attempt, row.failures, row.rescues, row.outcome) == (3, 3, 0, outcome)


@pytest.mark.parametrize(("failures", "backoff", "least", "most"), [
    (0, 2, 1, 3), (1, 2, 2, 6), (2, 2, 4, 12), (3, 2, 8, 24), (30, 2, 1800, 5400), (0, 0, 0, 0), (1, 60, 60, 180),
])  # fmt: skip
def test_the_pause_doubles_with_each_failure_within_its_bounds(jobs, failures, backoff, least, most):
    pauses = []
    for _ in range(12):
        held = jobs.take(jobs.add(idempotent=True, max_attempts=99, backoff_seconds=backoff))
        jobs.change(held.id, f"failures = {failures}")
        jobs.finish(held, "failed")
        row = jobs.row(held.id)
        assert row.ring_at >= row.run_at
        pauses.append(row.run_in)
    assert least - 1 < min(pauses)
    assert max(pauses) <= most
    assert backoff == 0 or len({round(pause, 3) for pause in pauses}) > 1


def test_a_task_may_say_when_it_wants_to_be_tried_again(jobs):
    held = jobs.take(jobs.add(idempotent=True))
    jobs.finish(held, "failed", retry_in=timedelta(minutes=5))
    assert 290 < jobs.row(held.id).run_in <= 300


def test_a_retry_starts_its_pauses_between_bells_anew(jobs):
    held = jobs.take(jobs.add(idempotent=True))
    jobs.change(held.id, "rings = 5")
    jobs.finish(held, "failed")
    assert jobs.row(held.id).rings == 0


# Interruptions: the platform ended the attempt, not the work.


def test_an_interruption_before_the_begin_is_repeated_whatever_the_job(jobs):
    job_id = jobs.add(max_attempts=1, max_rescues=2)
    states = [jobs.finish(jobs.take(job_id), "interrupted") for _ in range(3)]
    assert states == ["queued", "queued", "failed"]
    row = jobs.row(job_id)
    assert (row.failures, row.rescues, row.outcome) == (0, 2, "interrupted")


def test_an_interruption_in_the_middle_is_repeated_only_if_the_job_is_idempotent(jobs):
    assert jobs.finish(jobs.take_and_begin(jobs.add()), "interrupted") == "failed"
    assert jobs.finish(jobs.take_and_begin(jobs.add(idempotent=True)), "interrupted") == "queued"


def test_a_job_that_was_interrupted_is_rung_again_at_once(jobs):
    held = jobs.take(jobs.add())
    assert jobs.bells_of_finish(held, "interrupted") == [held.id]
    row = jobs.row(held.id)
    assert row.run_in <= 0 < row.ring_in <= 1


# Cancels.


def test_a_queued_job_is_cancelled_at_once(jobs):
    job_id = jobs.add()
    assert jobs.ledger.cancel(job_id, "not needed") == ("cancelled", ())
    row = jobs.row(job_id)
    assert (row.state, row.outcome, row.error, row.attempt) == ("cancelled", "cancelled", "not needed", 0)


def test_a_running_job_is_asked_to_end(jobs):
    held = jobs.take_and_begin(jobs.add())
    assert jobs.ledger.cancel(held.id, "wrong version") == ("running", ())
    asked_at = jobs.row(held.id).cancel_requested_at
    assert jobs.ledger.cancel(held.id, "again") == ("running", ())
    assert jobs.row(held.id).cancel_requested_at == asked_at
    assert jobs.finish(held, "cancelled", error="cancelled while it ran") == "cancelled"
    assert jobs.row(held.id).error == "cancelled while it ran; wrong version"


def test_what_has_ended_or_never_was_cannot_be_cancelled(jobs):
    job_id = jobs.add()
    jobs.finish(jobs.take(job_id))
    assert jobs.ledger.cancel(job_id) == (None, ())
    assert jobs.ledger.cancel(uuid4()) == (None, ())


def test_success_beats_cancel(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.ledger.cancel(held.id, "too late")
    assert jobs.finish(held, result=1) == "succeeded"
    row = jobs.row(held.id)
    assert (row.outcome, row.result, row.error) == ("ok", 1, None)


@pytest.mark.parametrize("outcome", ["failed", "timeout", "interrupted"])
def test_cancel_beats_retry(jobs, outcome):
    held = jobs.take_and_begin(jobs.add(idempotent=True))
    jobs.ledger.cancel(held.id)
    assert jobs.finish(held, outcome, error="it said no") == "cancelled"
    row = jobs.row(held.id)
    assert (row.outcome, "it said no" in row.error) == ("cancelled", True)


def test_a_cancelled_attempt_that_had_begun_says_that_its_effect_is_unknown(jobs):
    begun, fresh = jobs.take_and_begin(jobs.add()), jobs.take(jobs.add())
    for held in (begun, fresh):
        jobs.ledger.cancel(held.id, "wrong version")
        jobs.finish(held, "interrupted", error="the worker was shut down")
    assert jobs.row(begun.id).error == "cancelled; wrong version; the worker was shut down; effect unknown"
    assert jobs.row(fresh.id).error == "cancelled; wrong version; the worker was shut down"


# Whose end it is.


def test_a_finish_whose_answer_was_lost_is_repeated_without_harm(jobs):
    held = jobs.take(jobs.add(idempotent=True))
    assert jobs.finish(held, "failed") == "queued"
    before = jobs.row(held.id)
    assert jobs.finish(held, "failed") == "queued"
    after = jobs.row(held.id)
    assert (after.failures, after.run_at) == (before.failures, before.run_at)
    assert jobs.actions(held.id) == ["enqueued", "started", "retried"]


def test_a_repeated_finish_is_not_late_while_the_next_attempt_runs(jobs):
    held = jobs.take(jobs.add(idempotent=True))
    jobs.finish(held, "failed", retry_in=timedelta())
    jobs.take(held.id)
    assert jobs.finish(held, "failed") == "running"


@pytest.mark.parametrize("stranger", ["token", "attempt"])
def test_a_result_that_comes_from_somebody_else_is_recorded_and_changes_nothing(jobs, stranger):
    held = jobs.take_and_begin(jobs.add())
    other = Held(held.id, held.attempt + (stranger == "attempt"), uuid4() if stranger == "token" else held.token)
    before = jobs.row(held.id)
    assert jobs.finish(other, "failed", error="mine") == "late"
    after = jobs.row(held.id)
    assert (after.state, after.lease_token, after.failures) == (before.state, before.lease_token, before.failures)
    entry = jobs.entries(held.id)[-1]
    assert entry.action == "job.late_result"
    assert entry.details == {"attempt": other.attempt, "outcome": "failed", "error": "mine", "state": "running"}


def test_a_result_that_comes_after_a_rescue_is_late(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.lose_lease(held)
    jobs.rescue()
    assert jobs.finish(held) == "late"
    assert jobs.state(held.id) == ("failed", "lost")
    assert jobs.actions(held.id)[-2:] == ["lost", "late_result"]


def test_the_result_of_a_job_that_was_removed_is_recorded_as_well(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.owner.execute("DELETE FROM jobs WHERE id = %s", [held.id])
    assert jobs.finish(held) == "late"
    entry = jobs.entries(held.id)[-1]
    assert (entry.action, entry.details["state"]) == ("job.late_result", "removed")


# The key is handed over.


def test_the_end_of_a_holder_rings_the_head_of_each_queue(jobs):
    held = jobs.take(jobs.add(lock_key="k"))
    jobs.add(lock_key="k", queue="a", run_at=in_(hours=1), priority=0)
    jobs.add(lock_key="k", queue="a", priority=6)
    head_a = jobs.add(lock_key="k", queue="a", priority=2)
    head_b = jobs.add(lock_key="k", queue="b")
    jobs.add(lock_key="k", queue="b")
    jobs.add(lock_key="k", queue="c", run_at=in_(hours=1))
    other = jobs.add(lock_key="l")
    assert jobs.bells_of_finish(held) == [head_a, head_b]
    for job_id in (head_a, head_b):
        assert 0 < jobs.row(job_id).ring_in <= 1
    assert jobs.row(other).ring_in <= 0


def test_a_bell_of_a_hand_over_says_where_it_goes(jobs):
    held = jobs.take(jobs.add(lock_key="k"))
    head = jobs.add(lock_key="k", queue="b", priority=2)
    _, (bell,) = jobs.ledger.finish(held.id, held.attempt, held.token, "ok")
    assert (bell.id, bell.task, bell.queue, bell.priority) == (head, "tests.task", "b", 2)


def test_a_retry_lets_others_use_its_key_meanwhile(jobs):
    held = jobs.take(jobs.add(lock_key="k", idempotent=True))
    waiter = jobs.add(lock_key="k")
    assert jobs.bells_of_finish(held, "failed") == [waiter]
    assert jobs.claim(waiter).verdict == "run"


def test_a_job_that_was_interrupted_keeps_its_place_at_the_head(jobs):
    held = jobs.take(jobs.add(lock_key="k"))
    jobs.add(lock_key="k")
    assert jobs.bells_of_finish(held, "interrupted") == [held.id]


def test_the_end_of_a_job_without_a_key_rings_nobody(jobs):
    jobs.add()
    assert jobs.bells_of_finish(jobs.take(jobs.add())) == []


def test_the_cancel_of_a_head_rings_the_next_and_that_of_others_nobody(jobs):
    head, second, third = (jobs.add(lock_key="k") for _ in range(3))
    assert [bell.id for bell in jobs.ledger.cancel(head)[1]] == [second]
    jobs.take(second)
    assert jobs.ledger.cancel(third)[1] == ()


def test_a_hand_over_does_not_wait_for_a_waiter_that_somebody_looks_at(jobs, crowd):
    held = jobs.take(jobs.add(lock_key="k"))
    head = jobs.add(lock_key="k", queue="a")
    other = jobs.add(lock_key="k", queue="b")
    with crowd.transaction() as looking:
        looking.execute("SELECT FROM jobs WHERE id = %s FOR NO KEY UPDATE", [head])
        assert jobs.bells_of_finish(held) == [other]
    assert jobs.row(head).ring_in <= 0  # the relay's now
