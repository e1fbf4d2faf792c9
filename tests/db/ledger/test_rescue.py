"""The rescue: looks twice before it believes that a holder is dead, and then says only what can be known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest


def in_(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


def test_the_first_look_marks_and_does_nothing_else(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.change(held.id, "lease_until = now() - interval '1 min'")
    assert jobs.rescue() == {}
    row = jobs.row(held.id)
    assert (row.state, row.suspect_in <= 0) == ("running", True)


def test_a_mark_that_is_young_is_left_to_grow_old(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.change(held.id, "lease_until = now() - interval '1 min', suspect_at = now() - interval '1 s'")
    before = jobs.row(held.id).suspect_at
    assert jobs.rescue() == {}
    assert jobs.row(held.id).suspect_at == before


def test_a_mark_older_than_the_grace_is_acted_on(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.lose_lease(held)
    assert jobs.rescue() == {held.id: ("failed", "lost")}
    row = jobs.row(held.id)
    assert row.error == (
        "worker worker one stopped answering after the work had begun; nobody can know whether it took effect"
    )
    assert (row.lease_token, row.lease_until, row.suspect_at) == (None, None, None)


def test_a_mark_that_nobody_looked_at_for_a_while_is_set_anew(jobs):
    """After an outage of the platform itself, workers must get their chance to beat first."""
    held = jobs.take_and_begin(jobs.add())
    jobs.change(held.id, "lease_until = now() - interval '1 min', suspect_at = now() - interval '9 s'")
    assert jobs.rescue() == {}
    assert -1 < jobs.row(held.id).suspect_in <= 0


def test_a_heartbeat_between_the_looks_saves_the_job(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.lose_lease(held)
    jobs.beat(held)
    assert jobs.rescue() == {}
    jobs.change(held.id, "lease_until = now() - interval '1 s'")
    assert jobs.rescue() == {}
    assert jobs.state(held.id)[0] == "running"


def test_nothing_is_acted_on_within_one_grace_of_the_servers_start(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.change(held.id, "lease_until = now() - interval '10 days', suspect_at = now() - interval '8 days'")
    moved, _ = jobs.ledger.rescue(timedelta(days=7))
    assert moved == []
    assert jobs.state(held.id)[0] == "running"


def test_a_lease_in_force_is_not_looked_at(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.change(held.id, "suspect_at = now() - interval '5 s'")
    assert jobs.rescue() == {}


def test_an_attempt_whose_processes_are_all_gone_is_ended_at_once(jobs):
    gone, lives = jobs.take_and_begin(jobs.add()), jobs.take_and_begin(jobs.add())
    assert jobs.rescue(dead=[gone.token, uuid4()]) == {gone.id: ("failed", "lost")}
    assert jobs.row(gone.id).error.startswith("worker worker one died after the work had begun")
    assert jobs.state(lives.id)[0] == "running"


def test_a_token_that_was_buried_once_says_nothing_of_the_next_attempt(jobs):
    first = jobs.take(jobs.add())
    jobs.rescue(dead=[first.token])
    jobs.take(first.id)
    assert jobs.rescue(dead=[first.token]) == {}


@pytest.mark.parametrize(
    ("idempotent", "begun", "cancelled", "verdict"),
    [
        (False, False, False, ("queued", "interrupted")),
        (True, False, False, ("queued", "interrupted")),
        (False, True, False, ("failed", "lost")),
        (True, True, False, ("queued", "lost")),
        (False, False, True, ("cancelled", "cancelled")),
        (True, True, True, ("cancelled", "cancelled")),
    ],
)
def test_the_verdict_repeats_only_what_may_be_repeated(jobs, idempotent, begun, cancelled, verdict):
    held = jobs.take(jobs.add(idempotent=idempotent))
    if begun:
        jobs.begin(held)
    if cancelled:
        jobs.ledger.cancel(held.id)
    jobs.lose_lease(held)
    assert list(jobs.rescue()) == [held.id]
    assert jobs.state(held.id) == verdict
    row = jobs.row(held.id)
    assert row.rescues == (verdict[0] == "queued")
    assert row.failures == 0
    if cancelled:
        assert row.error.endswith("effect unknown") is begun


@pytest.mark.parametrize("begun", [True, False])
def test_rescues_are_bounded(jobs, begun):
    job_id = jobs.add(idempotent=True, max_rescues=2)
    for _ in range(3):
        held = jobs.take(job_id)
        if begun:
            jobs.begin(held)
        jobs.lose_lease(held)
        jobs.rescue()
    row = jobs.row(job_id)
    assert (row.state, row.attempt, row.rescues) == ("failed", 3, 2)
    assert row.outcome == ("lost" if begun else "interrupted")


def test_rescues_do_not_use_up_the_attempts(jobs):
    held = jobs.take_and_begin(jobs.add(idempotent=True, max_attempts=2))
    jobs.lose_lease(held)
    jobs.rescue()
    assert jobs.finish(jobs.take_and_begin(held.id), "failed") == "queued"


def test_a_rescued_job_is_rung_at_once(jobs):
    held = jobs.take(jobs.add())
    jobs.lose_lease(held)
    jobs.rescue()
    row = jobs.row(held.id)
    assert row.run_in <= 0 < row.ring_in <= 1


def test_a_rescue_rings_whoever_may_run_now(jobs):
    lost = jobs.take_and_begin(jobs.add(lock_key="k"))
    waiter = jobs.add(lock_key="k")
    fresh = jobs.take(jobs.add(lock_key="l"))
    jobs.add(lock_key="l")
    alone = jobs.take(jobs.add())
    bells = jobs.ledger.rescue(dead=[lost.token, fresh.token, alone.token])[1]
    assert {bell.id for bell in bells} == {waiter, fresh.id, alone.id}
    assert jobs.claim(waiter).verdict == "run"


def test_several_look_at_once_and_each_row_is_one_lookers(jobs, crowd):
    held = jobs.take(jobs.add())
    jobs.lose_lease(held)
    with crowd.transaction() as looking:
        assert [row[0] for row in looking.execute("SELECT id FROM ops_rescue()").fetchall()] == [held.id]
        other = jobs.take(jobs.add())
        jobs.lose_lease(other)
        assert set(jobs.rescue()) == {other.id}
        looking.rollback()
    assert set(jobs.rescue()) == {held.id}


def test_a_row_that_somebody_works_on_is_left_for_the_next_look(jobs, crowd):
    held = jobs.take(jobs.add())
    jobs.lose_lease(held)
    with crowd.transaction() as busy:
        busy.execute("SELECT FROM jobs WHERE id = %s FOR NO KEY UPDATE", [held.id])
        assert jobs.rescue() == {}
    assert jobs.rescue() == {held.id: ("queued", "interrupted")}


def test_what_has_expired_is_ended_and_hands_its_key_over(jobs):
    gone = jobs.add(lock_key="k", expires_at=in_(seconds=-1))
    waiter = jobs.add(lock_key="k", expires_at=in_(hours=1))
    moved, bells = jobs.ledger.rescue()
    assert [(row["id"], row["state"], row["outcome"]) for row in moved] == [(gone, "cancelled", "expired")]
    assert [bell.id for bell in bells] == [waiter]


def test_what_runs_does_not_expire(jobs):
    held = jobs.take(jobs.add(expires_at=in_(hours=1)))
    jobs.change(held.id, "expires_at = now()")
    assert jobs.rescue() == {}
    assert jobs.state(held.id)[0] == "running"
