"""While a job is held: begin, the last write before the effect, and heartbeats."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.db.ledger.conftest import Held


def strangers(held: Held) -> list[Held]:
    """Claims of the same job that are not this one."""
    return [Held(held.id, held.attempt, uuid4()), Held(held.id, held.attempt + 1, held.token)]


def lease_in(row) -> float:
    return (row.lease_until - row.now).total_seconds()


def test_begin_names_the_holders_and_renews_the_lease(jobs):
    held = jobs.take(jobs.add(lease_seconds=30))
    jobs.change(held.id, "lease_until = now() + interval '1 s', suspect_at = now()")
    assert jobs.begin(held) == "go"
    row = jobs.row(held.id)
    assert row.holders == ["1:1", "2:2"]
    assert 29 < lease_in(row) <= 30
    assert row.suspect_at is None
    assert -5 < row.began_in <= 0


def test_a_begin_whose_answer_was_lost_is_repeated(jobs):
    held = jobs.take(jobs.add())
    assert jobs.begin(held) == "go"
    first = jobs.row(held.id).began_at
    assert jobs.begin(held) == "go"
    assert jobs.row(held.id).began_at == first


def test_begin_sees_a_cancel_that_came_before(jobs):
    held = jobs.take(jobs.add())
    jobs.ledger.cancel(held.id)
    assert jobs.begin(held) == "cancelled"
    assert jobs.row(held.id).began_at is None


@pytest.mark.parametrize("late", ["lease_until = now() - interval '1 s'", "deadline_at = now() - interval '1 s'"])
def test_nothing_begins_after_the_lease_or_the_deadline(jobs, late):
    held = jobs.take(jobs.add())
    jobs.change(held.id, late)
    assert jobs.begin(held) == "lost"
    assert jobs.row(held.id).began_at is None


def test_nothing_begins_for_whoever_does_not_hold_the_job(jobs):
    held = jobs.take(jobs.add())
    assert [jobs.begin(stranger) for stranger in strangers(held)] == ["lost", "lost"]
    assert jobs.begin(held) == "go"


def test_nothing_begins_after_a_rescue_has_given_the_job_back(jobs):
    held = jobs.take(jobs.add())
    jobs.lose_lease(held)
    jobs.rescue()
    assert jobs.state(held.id)[0] == "queued"
    assert jobs.begin(held) == "lost"
    jobs.take(held.id)
    assert jobs.begin(held) == "lost"


def test_a_heartbeat_renews_the_lease_and_clears_a_mark(jobs):
    held = jobs.take_and_begin(jobs.add(lease_seconds=30))
    jobs.change(held.id, "lease_until = now() + interval '1 s', suspect_at = now()")
    assert jobs.beat(held) == "go"
    row = jobs.row(held.id)
    assert 29 < lease_in(row) <= 30
    assert row.suspect_at is None


def test_a_heartbeat_revives_a_lease_that_ran_out_while_nobody_looked(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.change(held.id, "lease_until = now() - interval '1 min'")
    assert jobs.beat(held) == "go"
    assert lease_in(jobs.row(held.id)) > 0


def test_a_heartbeat_brings_a_cancel_and_still_renews_the_lease(jobs):
    held = jobs.take_and_begin(jobs.add(lease_seconds=30))
    jobs.ledger.cancel(held.id)
    jobs.change(held.id, "lease_until = now() + interval '1 s'")
    assert jobs.beat(held) == "cancelled"
    assert lease_in(jobs.row(held.id)) > 29


def test_a_heartbeat_renews_for_half_a_minute_beyond_the_deadline_at_most(jobs):
    held = jobs.take_and_begin(jobs.add(lease_seconds=60))
    jobs.change(held.id, "deadline_at = now() - interval '20 s'")
    assert jobs.beat(held) == "go"
    assert 9 < lease_in(jobs.row(held.id)) <= 10
    jobs.change(held.id, "deadline_at = now() - interval '31 s', suspect_at = now()")
    assert jobs.beat(held) == "lost"
    assert jobs.row(held.id).suspect_at is not None


def test_a_heartbeat_of_whoever_does_not_hold_the_job_changes_nothing(jobs):
    held = jobs.take_and_begin(jobs.add())
    jobs.change(held.id, "suspect_at = now()")
    assert [jobs.beat(stranger) for stranger in strangers(held)] == ["lost", "lost"]
    assert jobs.row(held.id).suspect_at is not None
    jobs.finish(held)
    assert jobs.beat(held) == "lost"


def test_the_lease_of_an_application_is_as_long_as_it_asked_for(jobs):
    held = jobs.take(jobs.add(lease_seconds=3))
    jobs.beat(held)
    assert 2 < lease_in(jobs.row(held.id)) <= 3
