"""The relay: what is queued, due and unblocked is rung again and again, within the room there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from threading import Barrier
from uuid import UUID

import pytest

QUEUE = "a"


def in_(**duration: float) -> datetime:
    return datetime.now(UTC) + timedelta(**duration)


def relay(jobs, room: int = 200, queue: str = QUEUE) -> list[UUID]:
    return [bell.id for bell in jobs.ledger.relay(queue, room)]


def test_a_job_whose_bell_is_due_is_rung(jobs):
    job_id = jobs.add(priority=3)
    (bell,) = jobs.ledger.relay(QUEUE, 200)
    assert (bell.id, bell.task, bell.queue, bell.priority) == (job_id, "tests.task", QUEUE, 3)


def test_the_pause_between_two_bells_grows_to_two_minutes(jobs):
    job_id = jobs.add()
    pauses = []
    for _ in range(9):
        assert relay(jobs) == [job_id]
        assert relay(jobs) == []
        pauses.append(round(jobs.row(job_id).ring_in))
        jobs.all_due()
    assert pauses == [2, 4, 8, 16, 32, 64, 120, 120, 120]
    assert jobs.row(job_id).rings == 9


def test_no_more_is_rung_than_there_is_room_for(jobs):
    ids = [jobs.add() for _ in range(5)]
    assert relay(jobs, 2) == ids[:2]
    assert relay(jobs, 0) == []
    assert relay(jobs, 200) == ids[2:]


def test_what_is_more_urgent_is_rung_first(jobs):
    late, urgent, usual = jobs.add(priority=9), jobs.add(priority=0), jobs.add()
    assert relay(jobs, 2) == [urgent, usual]
    assert relay(jobs) == [late]


def test_what_has_waited_longest_for_its_bell_is_rung_first(jobs):
    first, second = jobs.add(), jobs.add()
    jobs.change(first, "ring_at = now() - interval '1 s'")
    jobs.change(second, "ring_at = now() - interval '2 s'")
    assert relay(jobs) == [second, first]


def test_a_queue_is_rung_by_itself(jobs):
    jobs.add(queue="b")
    assert relay(jobs) == []
    assert len(relay(jobs, queue="b")) == 1


def test_what_is_not_due_is_not_touched(jobs):
    future, later = jobs.add(run_at=in_(hours=1)), jobs.add(rung=True)
    before = [jobs.row(each).ring_at for each in (future, later)]
    assert relay(jobs) == []
    assert jobs.ledger.due_queues() == []
    assert [jobs.row(each).ring_at for each in (future, later)] == before


def test_what_runs_or_has_ended_is_not_rung(jobs):
    running, ended = jobs.add(), jobs.add()
    jobs.take(running)
    jobs.finish(jobs.take(ended))
    jobs.owner.execute("UPDATE jobs SET ring_at = now() - interval '1 s'")
    assert relay(jobs) == []


def test_a_time_that_was_moved_by_hand_moves_the_bell_along(jobs):
    """Else rows that can never be rung would stand before all others."""
    job_id = jobs.add()
    jobs.change(job_id, "run_at = now() + interval '1 hour'")
    assert relay(jobs) == []
    row = jobs.row(job_id)
    assert row.ring_at == row.run_at


# Jobs that wait for a key.


def test_a_head_that_waits_for_its_key_is_looked_at_again_in_three_seconds(jobs):
    jobs.take(jobs.add(lock_key="k"))
    head = jobs.add(lock_key="k")
    assert relay(jobs) == []
    row = jobs.row(head)
    assert (2 < row.ring_in <= 3, row.rings) == (True, 0)


@pytest.mark.parametrize(("waited", "least", "most"), [("1 s", 14, 15), ("2 min", 29, 32), ("1 day", 59, 60)])
def test_those_behind_a_head_are_looked_at_less_often_the_longer_they_wait(jobs, waited, least, most):
    head, behind = jobs.add(lock_key="k"), jobs.add(lock_key="k")
    jobs.change(behind, f"run_at = now() - interval '{waited}'")
    assert relay(jobs) == [head]
    row = jobs.row(behind)
    assert (least < row.ring_in <= most, row.rings) == (True, 0)


def test_the_head_of_a_free_key_is_rung(jobs):
    jobs.add(lock_key="k")
    head = jobs.add(lock_key="k", priority=1)
    assert relay(jobs) == [head]


def test_heads_of_two_queues_of_one_key_are_both_rung(jobs):
    one, two = jobs.add(lock_key="k", queue="a"), jobs.add(lock_key="k", queue="b")
    assert relay(jobs, queue="a") == [one]
    assert relay(jobs, queue="b") == [two]


def test_blocked_jobs_take_no_room_from_others(jobs):
    jobs.take(jobs.add(lock_key="k", priority=0))
    for _ in range(3):
        jobs.add(lock_key="k", priority=0)
    free = jobs.add(priority=9)
    assert relay(jobs, 1) == [free]


def test_many_blocked_jobs_hold_up_others_for_a_few_looks_only(jobs):
    jobs.take(jobs.add(lock_key="k"))
    jobs.owner.execute(
        "SELECT ops_enqueue('tests.task', p_queue => 'a', p_lock_key => 'k') FROM generate_series(1, 450)"
    )
    free = jobs.add()
    looks = [relay(jobs) for _ in range(3)]
    assert looks == [[], [], [free]]


# Several relays, and what they look at.


def test_two_relays_ring_nothing_twice(jobs, crowd):
    jobs.owner.execute("SELECT ops_enqueue('tests.task', p_queue => 'a') FROM generate_series(1, 400)")
    together = Barrier(4)

    def ring_all() -> list[UUID]:
        rung = []
        with crowd.ledger() as ledger:
            ledger.due_queues()  # connects
            together.wait(10)
            for _ in range(40):
                rung += [bell.id for bell in ledger.relay(QUEUE, 10)]
        return rung

    rung = [job_id for future in [crowd.start(ring_all) for _ in range(4)] for job_id in future.result(30)]
    rung += [bell.id for bell in jobs.ledger.relay(QUEUE, 400)]  # what one looked at while another held it
    assert len(rung) == 400
    assert len(set(rung)) == 400


def test_a_row_that_somebody_works_on_is_rung_in_the_next_round(jobs, crowd):
    busy, free = jobs.add(), jobs.add()
    with crowd.transaction() as working:
        working.execute("SELECT FROM jobs WHERE id = %s FOR NO KEY UPDATE", [busy])
        assert relay(jobs) == [free]
    assert relay(jobs) == [busy]


def test_queues_in_which_something_is_due_are_told(jobs):
    assert jobs.ledger.due_queues() == []
    jobs.add(queue="b", priority=9)
    jobs.add(queue="a")
    jobs.add(queue="a", priority=0)
    jobs.add(queue="c", run_at=in_(hours=1))
    jobs.take(jobs.add(queue="d"))
    assert jobs.ledger.due_queues() == ["a", "b"]


@pytest.mark.parametrize("analysed", [False, True])
def test_a_backlog_is_found_by_index_whatever_the_statistics_say(jobs, analysed):
    """Stale ones know of no rows; fresh ones say that the first row of the table will do as well."""
    jobs.owner.execute("ANALYZE jobs")
    jobs.owner.execute("SELECT ops_enqueue('tests.task', p_queue => 'a') FROM generate_series(1, 3000)")
    if analysed:
        jobs.owner.execute("ANALYZE jobs")
    before = scans(jobs)
    for _ in range(3):
        assert jobs.ledger.due_queues() == [QUEUE]
        assert len(relay(jobs, 50)) == 50
    assert scans(jobs) == before


def scans(jobs) -> int:
    """How often the table has been read from end to end."""
    jobs.ledger.close()  # a session tells its figures when it ends
    jobs.app.execute("SELECT pg_stat_clear_snapshot()")
    ((count,),) = jobs.app.execute("SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'jobs'::regclass").fetchall()
    return int(count)
