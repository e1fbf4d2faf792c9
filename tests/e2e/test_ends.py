"""How what runs is ended by somebody: shutdown, cancel, timeout. Always in order, always recorded."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.platform import Platform
from tests.e2e.process import is_alive, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def job_of(platform: Platform, result: object) -> str:
    job = str(getattr(result, "id", result))
    assert platform.job(job)
    return job


def test_a_worker_that_is_asked_to_end_waits_for_what_runs(platform: Platform) -> None:
    worker = platform.worker()
    gate = platform.folder / "gate"
    deployed = platform.deploy("--gate", str(gate))
    platform.wait_begun(deployed)
    worker.signal(signal.SIGTERM)
    until(lambda: "shutdown" in worker.text, "the worker has heard it")
    gate.touch()
    assert worker.wait() == 0
    assert platform.wait_ended(deployed) == "success"
    assert "Traceback" not in worker.text
    assert platform.rows("SELECT 1 FROM processes") == []


def test_a_worker_that_has_waited_long_enough_ends_what_runs_in_order(platform: Platform) -> None:
    """One deployment that listens to TERM, and one that does not; what waits is taken over by another worker."""
    worker = platform.worker(OPS_SHUTDOWN_SECONDS="2")
    good = platform.deploy("--gate", "/nowhere")
    stubborn = platform.deploy("--gate", "/nowhere", "--stubborn", "yes")
    waiting = platform.deploy("--gate", "/nowhere", "--stubborn", "yes")
    pids = [platform.wait_begun(each) for each in (good, stubborn)]
    asked_at = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert time.monotonic() - asked_at >= 2
    assert not any(map(is_alive, pids))
    for each in (good, stubborn):
        assert platform.wait_ended(each, 1) == "error: interrupted"
        assert "shut down" in platform.deployment(each.id)["error_message"]
        assert platform.story(each.job) == ["enqueued", "started", "failed"]
    assert "Traceback" not in worker.text
    platform.worker("w2")
    platform.wait_begun(waiting)
    platform.check_effects(good, stubborn, waiting)


def test_a_shutdown_puts_back_what_may_run_again(platform: Platform) -> None:
    worker = platform.worker(app="tests.e2e.shop", queues="shop", OPS_SHUTDOWN_SECONDS="1")
    shop = platform.call_as("tests.e2e.shop")
    gate = platform.folder / "gate"
    arguments = (str(platform.effects.file), str(gate))
    again, never = job_of(platform, shop.copy.delay(*arguments)), job_of(platform, shop.charge.delay(*arguments))
    platform.wait_begun(again)
    platform.wait_begun(never)
    assert worker.stop() == 0
    assert (platform.job(again)["state"], platform.job(never)["state"]) == ("queued", "failed")
    assert platform.job(never)["outcome"] == "interrupted"
    platform.worker("w2", app="tests.e2e.shop", queues="shop")
    gate.touch()
    until(lambda: platform.job(again)["state"] == "succeeded", "the other worker has done it again")
    assert platform.story(again) == ["enqueued", "started", "retried", "started", "succeeded"]
    assert platform.story(never) == ["enqueued", "started", "failed"]
    assert len(platform.effects.of(never)) == 1
    assert "Traceback" not in worker.text


def test_a_term_to_every_process_of_a_worker_at_once_leaves_nothing_unsaid(platform: Platform) -> None:
    """As a service manager sends it that knows a worker's children too."""
    worker = platform.worker(OPS_SHUTDOWN_SECONDS="2")
    deployed = platform.deploy("--gate", "/nowhere")
    pid = platform.wait_begun(deployed)
    for each in [*worker.children, worker.pid]:
        os.kill(each, signal.SIGTERM)
    assert platform.wait_ended(deployed) == "error: interrupted"
    assert worker.wait() == 0
    until(lambda: not is_alive(pid), "the effect is dead")
    assert platform.story(deployed.job) == ["enqueued", "started", "failed"]
    platform.check_effects(deployed)


def test_a_cancel_ends_what_waits_at_once_and_what_runs_soon(platform: Platform) -> None:
    """Also a program that ignores TERM and has started another one: its whole group is dead."""
    platform.worker()
    running = platform.deploy("--gate", "/nowhere")
    waiting = platform.deploy("--gate", "/nowhere")
    stubborn = platform.deploy("--gate", "/nowhere", "--stubborn", "yes", "--spawn", "yes")
    pids = [platform.wait_begun(each) for each in (running, stubborn)]
    pids.append(until(lambda: platform.spawned(pids[1]), "it has started another process"))
    platform.cancel(waiting)
    assert platform.wait_ended(waiting, 1) == "cancelled"
    platform.cancel(stubborn)
    platform.cancel(running)
    assert platform.wait_ended(running, 15) == "cancelled"
    assert platform.wait_ended(stubborn, 20) == "cancelled"
    assert not any(map(is_alive, pids))
    assert platform.story(waiting.job) == ["enqueued", "cancelled"]
    for each in (running, stubborn):
        assert platform.story(each.job) == ["enqueued", "started", "cancel_requested", "cancelled"]
    assert platform.effects.of(waiting.job) == []
    platform.check_effects(running, stubborn)


def test_a_deployment_that_takes_too_long_is_ended_as_a_timeout(platform: Platform) -> None:
    platform.worker()
    deployed = platform.deploy("--gate", "/nowhere", timeout_seconds=2)
    pid = platform.wait_begun(deployed)
    assert platform.wait_ended(deployed) == "failed"
    assert platform.job(deployed.job)["outcome"] == "timeout"
    assert not is_alive(pid)
    run = platform.effects.of(deployed.job)[0]
    assert 1 < run.last - run.began < 5
    assert platform.story(deployed.job) == ["enqueued", "started", "failed"]


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_an_applications_own_task_is_ended_in_its_body_on_every_pool(platform: Platform, pool: str) -> None:
    """By a cancel, by its timeout, by the end of the worker: `finally` runs, and the job says why."""
    worker = platform.worker("w1", "-P", pool, app="tests.e2e.shop", queues="shop", OPS_SHUTDOWN_SECONDS="1")
    shop = platform.call_as("tests.e2e.shop")

    def run(name: str, **options: int) -> tuple[str, Path]:
        note = platform.folder / name
        job = str(shop.tidy_up.apply_async((str(platform.effects.file), "/nowhere", str(note)), **options).id)
        platform.wait_begun(job)
        return job, note

    def ended(job: str) -> tuple[str, str]:
        until(lambda: platform.job(job)["finished_at"], "it has ended", 20)
        return platform.job(job)["state"], platform.job(job)["outcome"]

    job, note = run("cancelled")
    platform.cancel_job(job)
    assert ended(job) == ("cancelled", "cancelled")
    assert note.read_text() == "cancelled"
    assert platform.story(job) == ["enqueued", "started", "cancel_requested", "cancelled"]
    job, note = run("timeout", timeout=1)
    assert ended(job) == ("failed", "timeout")
    assert note.read_text() == "timeout"
    assert worker.is_alive
    job, note = run("interrupted")
    assert worker.stop() == 0
    assert ended(job) == ("failed", "interrupted")
    assert note.read_text() == "interrupted"
    assert "Traceback" not in worker.text


def test_a_body_that_does_not_let_itself_be_ended_is_killed_with_its_lease(platform: Platform) -> None:
    """The database is told nothing by it any more: renewals end 30 seconds after the timeout; here the row is taken
    from it, which is the same to the holder."""
    worker = platform.worker(app="tests.e2e.shop", queues="shop", processes=1)
    shop = platform.call_as("tests.e2e.shop")
    job = job_of(platform, shop.deaf.delay(str(platform.effects.file)))
    pid = platform.wait_begun(job)
    platform.rows("UPDATE jobs SET lease_token = gen_random_uuid() WHERE id = %s", job)
    until(lambda: not is_alive(pid), "the child is dead", 15)
    assert worker.is_alive
