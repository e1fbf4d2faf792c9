"""The servers die, and come back: nothing is lost, nothing runs twice, what runs goes on where it may."""

from __future__ import annotations

import time

import pytest

from tests.e2e.platform import Deployed, Platform
from tests.e2e.process import is_alive, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def backlog(platform: Platform, count: int, *options: str) -> list[Deployed]:
    """So many deployments, each on a lock key of its own."""
    return [platform.deploy(*options, infra=f"infra-{number}") for number in range(count)]


def check_all_well(platform: Platform, deployed: list[Deployed], seconds: float = 120) -> None:
    statuses = [platform.wait_ended(each, seconds) for each in deployed]
    assert statuses == ["success"] * len(deployed)
    for each in deployed:
        assert platform.story(each.job) == ["enqueued", "started", "succeeded"]
    platform.check_effects(*deployed)


def test_a_killed_broker_disturbs_nothing_that_runs_and_loses_nothing_that_waits(breakable: Platform) -> None:
    worker = breakable.worker(processes=2)
    gate = breakable.folder / "gate"
    runs = [breakable.deploy("--gate", str(gate), infra=f"runs-{number}") for number in range(2)]
    for each in runs:
        breakable.wait_begun(each)
    waits = backlog(breakable, 3)
    breakable.stack.valkey.kill()
    during = breakable.deploy("--seconds", "0.1", infra="during")
    gate.touch()
    assert [breakable.wait_ended(each) for each in runs] == ["success", "success"]
    breakable.stack.start()
    check_all_well(breakable, [*runs, *waits, during])
    assert worker.is_alive
    assert "Traceback" not in worker.text


def test_a_broker_killed_in_the_middle_of_a_task_does_not_end_the_worker(breakable: Platform) -> None:
    """Guards a defect of Celery 5.7: when the broker goes away while a worker holds a message that is not acknowledged
    and has a free slot, its main process exits (`'NoneType' object has no attribute 'hostname'`): it closes a
    connection that it has collected already. Shown with an application's own task, since doorbells are never held."""
    worker = breakable.worker(app="tests.e2e.shop", queues="shop", processes=2)
    shop = breakable.call_as("tests.e2e.shop")
    gate = breakable.folder / "gate"
    shop.plain_and_late.delay(str(breakable.effects.file), str(gate))
    pid = breakable.wait_begun("plain")
    for _ in range(2):
        breakable.stack.valkey.kill()
        until(lambda: worker.text.count("Trying to re-establish") or not worker.is_alive, "it has noticed")
        breakable.stack.start()
        assert shop.ship.delay(1).get(timeout=60) == {"order": 1}
    assert worker.is_alive
    assert is_alive(pid)
    gate.touch()


def test_a_flush_of_the_broker_loses_none_of_a_backlog_of_fifty(breakable: Platform) -> None:
    deployed = backlog(breakable, 50)
    assert breakable.depth("deployments") == 50
    breakable.broker.flushall()
    breakable.worker("w1", processes=4)
    check_all_well(breakable, deployed, seconds=180)


def test_a_restart_of_the_database_loses_nothing(breakable: Platform) -> None:
    """Killed as by a power cut, while deployments run, wait, and are being asked for."""
    worker = breakable.worker(processes=2)
    gate = breakable.folder / "gate"
    runs = [breakable.deploy("--gate", str(gate), infra=f"runs-{number}") for number in range(2)]
    pids = [breakable.wait_begun(each) for each in runs]
    waits = backlog(breakable, 3)
    breakable.stack.postgres.kill()
    assert all(map(is_alive, pids))
    breakable.stack.start()
    gate.touch()
    check_all_well(breakable, [*runs, *waits])
    assert worker.is_alive


@pytest.mark.slow
def test_the_database_may_be_away_for_45_seconds_while_twenty_deployments_run(breakable: Platform) -> None:
    """With the real lease of 60 seconds: shorter than that stops nothing. Half of them end while it is away."""
    breakable.workers("w1", "w2", processes=10)
    first, second = breakable.folder / "first", breakable.folder / "second"
    deployed = [
        breakable.deploy("--gate", str(first if number % 2 else second), infra=f"infra-{number}")
        for number in range(20)
    ]
    pids = [breakable.wait_begun(each) for each in deployed]
    breakable.stack.postgres.stop("immediate")
    away_at = time.monotonic()
    first.touch()
    until(lambda: time.monotonic() > away_at + 45, "45 seconds have passed")
    assert sum(map(is_alive, pids)) == 10
    breakable.stack.start()
    second.touch()
    check_all_well(breakable, deployed)


def test_a_database_that_is_away_for_two_leases_stops_what_runs_and_says_so(breakable: Platform) -> None:
    """Scaled: a lease of 6 seconds instead of 60. The drivers are dead before their lease has ended; nobody can
    tell until the database is back; then each ends as interrupted, and what waits on its key runs."""
    lease = 6.0
    breakable.lease(lease)
    breakable.worker(processes=4)
    deployed = [breakable.deploy("--gate", "/nowhere", "--stubborn", "yes", infra=f"i-{n}") for n in range(4)]
    pids = [breakable.wait_begun(each) for each in deployed]
    waits = [breakable.deploy("--seconds", "0.1", infra="i-0")]
    breakable.stack.postgres.stop("immediate")
    # Renewed at the latest in the moment in which it went away.
    away_at = time.monotonic()
    until(lambda: not any(map(is_alive, pids)), "the drivers are dead", lease + 5)
    assert max(run.last for run in breakable.effects.read()) < away_at + lease
    until(lambda: time.monotonic() > away_at + 2 * lease, "two leases have passed")
    breakable.stack.start()
    for each in deployed:
        assert breakable.wait_ended(each) == "error: interrupted"
        assert "no heartbeat" in breakable.deployment(each.id)["error_message"]
        assert breakable.story(each.job)[:3] == ["enqueued", "started", "failed"]
    assert breakable.wait_ended(waits[0]) == "success"
    breakable.check_effects(*deployed, *waits)


def test_an_applications_task_learns_in_time_that_the_database_is_away_for_too_long(breakable: Platform) -> None:
    """A lease of 4 seconds, and the body runs in the worker's child. It is interrupted before the lease has ended, so
    that nobody has to kill the child; its end is recorded when the database is back: interrupted, not lost."""
    worker = breakable.worker(app="tests.e2e.shop", queues="shop", processes=1)
    shop = breakable.call_as("tests.e2e.shop")
    note = breakable.folder / "note"
    job = str(shop.tidy_up.delay(str(breakable.effects.file), "/nowhere", str(note)).id)
    pid = breakable.wait_begun(job)
    breakable.stack.postgres.stop("immediate")
    away_at = time.monotonic()
    until(note.exists, "the body was interrupted", 10)
    assert breakable.effects.of(job)[0].last < away_at + 4
    until(lambda: time.monotonic() > away_at + 8, "two leases have passed")
    assert is_alive(pid), "it waits for the database, and endangers nobody"
    breakable.stack.start()
    row = until(lambda: (r := breakable.job(job))["state"] == "failed" and r, "the job has ended")
    assert (row["outcome"], note.read_text()) == ("interrupted", "lost")
    assert breakable.story(job) == ["enqueued", "started", "failed"]
    assert worker.children == [pid]


def test_a_worker_that_starts_without_its_broker_still_looks_after_the_dead(breakable: Platform) -> None:
    """The rescue never travels through the broker."""
    first = breakable.worker("w1", app="tests.e2e.shop", queues="shop")
    shop = breakable.call_as("tests.e2e.shop")
    gate = breakable.folder / "gate"
    arguments = (str(breakable.effects.file), str(gate))
    lost, again = (str(task.delay(*arguments).id) for task in (shop.charge, shop.copy))
    breakable.wait_begun(lost)
    breakable.wait_begun(again)
    breakable.stack.valkey.stop()
    first.kill()
    second = breakable.worker("w2", app="tests.e2e.shop", queues="shop", wait=False)
    until(lambda: breakable.job(lost)["outcome"] == "lost", "the one is lost")
    until(lambda: breakable.job(again)["state"] == "queued", "the other waits")
    breakable.stack.start()
    gate.touch()
    until(lambda: breakable.job(again)["state"] == "succeeded", "and has run again")
    assert second.is_alive


@pytest.mark.slow
def test_the_broker_may_be_away_for_sixty_seconds(breakable: Platform) -> None:
    """Nothing that runs is disturbed; what is enqueued meanwhile starts by itself when it is back."""
    worker = breakable.worker(processes=2)
    gate = breakable.folder / "gate"
    runs = [breakable.deploy("--gate", str(gate), infra=f"runs-{number}") for number in range(2)]
    pids = [breakable.wait_begun(each) for each in runs]
    breakable.stack.valkey.stop()
    away_at = time.monotonic()
    meanwhile = backlog(breakable, 5)
    assert time.monotonic() - away_at < 20, "callers wait for a broker that is away"
    until(lambda: time.monotonic() > away_at + 30, "30 seconds have passed")
    assert all(map(is_alive, pids))
    gate.touch()
    assert [breakable.wait_ended(each) for each in runs] == ["success", "success"]
    until(lambda: time.monotonic() > away_at + 60, "60 seconds have passed")
    breakable.stack.start()
    check_all_well(breakable, [*runs, *meanwhile])
    assert worker.is_alive


def test_a_frozen_broker_holds_up_nobody(breakable: Platform) -> None:
    """Connected, and silent: a caller's commit takes a few seconds at most, and what runs goes on and ends."""
    breakable.worker(processes=2)
    gate = breakable.folder / "gate"
    runs = breakable.deploy("--gate", str(gate))
    breakable.wait_begun(runs)
    with breakable.frozen_broker():
        began = time.monotonic()
        meanwhile = breakable.deploy("--seconds", "0.1", infra="other")
        assert time.monotonic() - began < 6
        gate.touch()
        assert breakable.wait_ended(runs) == "success"
    check_all_well(breakable, [runs, meanwhile])
