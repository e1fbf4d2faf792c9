"""A worker that is stopped in the middle (SIGSTOP, a long stall, a suspended machine) and comes back too late."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.e2e.platform import Platform
from tests.e2e.process import is_alive, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def freeze_for_three_leases(platform: Platform, lease: float, seconds: float) -> None:
    frozen = platform.worker("w1", processes=1)
    deployed = platform.deploy("--gate", "/nowhere", "--stubborn", "yes")
    pid = platform.wait_begun(deployed)
    other = platform.worker("w2", processes=1)
    waiting = platform.deploy("--gate", "/nowhere", "--stubborn", "yes")
    assert waiting.key == deployed.key
    with frozen.frozen():
        stopped_at = time.monotonic()
        until(lambda: not is_alive(pid), "the driver of the stopped worker is dead", lease + 5)
        assert platform.effects.of(deployed.job)[0].last < stopped_at + lease
        next_pid = platform.wait_begun(waiting, seconds)
        assert platform.wait_ended(deployed) == "error: interrupted"
        until(lambda: time.monotonic() > stopped_at + 3 * lease, "three leases have passed", 4 * lease)
        before = platform.job(deployed.job)
        assert is_alive(next_pid)
    # The worker that comes back is heard, and changes nothing: its supervisor has said the same already.
    later = platform.deploy("--seconds", "0.1", infra="other")
    assert platform.wait_ended(later) == "success"
    until(lambda: "job_ended job_id=" + deployed.job in frozen.text, "the stopped worker has said how it ended")
    after = platform.job(deployed.job)
    assert {name for name in before if before[name] != after[name]} == set()
    assert platform.story(deployed.job) == ["enqueued", "started", "failed"]
    assert is_alive(next_pid)
    platform.cancel(waiting)
    assert platform.wait_ended(waiting) == "cancelled"
    platform.check_effects(deployed, waiting, later)
    assert frozen.is_alive
    assert other.is_alive


def test_a_worker_stopped_for_three_leases_has_no_driver_when_the_next_holder_starts(platform: Platform) -> None:
    """Scaled: a lease of 5 seconds instead of 60."""
    platform.lease(5)
    freeze_for_three_leases(platform, 5, 60)


@pytest.mark.slow
def test_a_worker_stopped_for_three_leases_of_a_minute(platform: Platform) -> None:
    """The same with the real lease, and 20 instead of 120 seconds beyond it."""
    freeze_for_three_leases(platform, 60, 120)


def test_a_result_that_comes_too_late_is_recorded_and_changes_nothing(platform: Platform) -> None:
    """An application's own task runs in the worker's child, and the stopped parent cannot kill that: the effect of
    one that is not idempotent still starts once, and the job ends as lost; the child's late success is recorded."""
    frozen = platform.worker("w1", app="tests.e2e.shop", queues="shop", processes=1)
    shop = platform.call_as("tests.e2e.shop")
    gate = platform.folder / "gate"
    job = str(shop.charge.delay(str(platform.effects.file), str(gate)).id)
    platform.wait_begun(job)
    platform.worker("w2", app="tests.e2e.shop", queues="shop", processes=1)
    (child,) = frozen.children
    with frozen.frozen():
        until(lambda: platform.job(job)["state"] == "failed", "the job has ended without its worker")
        before = platform.job(job)
        assert before["outcome"] == "lost"
        gate.touch()
        os.kill(child, signal.SIGCONT)
        until(lambda: "late_result" in platform.story(job), "the late result is recorded")
    assert platform.job(job) == before
    assert platform.story(job) == ["enqueued", "started", "lost", "late_result"]
    assert [run.ended for run in platform.effects.of(job)] == [True]


def test_a_frozen_child_alone_loses_its_job_and_its_life(platform: Platform) -> None:
    """An application's own task runs in the child itself: its parent kills it when its lease has run out."""
    worker = platform.worker(app="tests.e2e.shop", queues="shop", processes=1)
    shop = platform.call_as("tests.e2e.shop")
    gate = platform.folder / "gate"
    job = str(shop.charge.delay(str(platform.effects.file), str(gate)).id)
    pid = platform.wait_begun(job)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: not is_alive(pid), "the stopped child is dead", 20)
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)
    until(lambda: platform.job(job)["state"] == "failed", "the job has ended")
    assert platform.job(job)["outcome"] == "lost"
    assert worker.is_alive
    gate.touch()
    again = str(shop.charge.delay(str(platform.effects.file), str(gate)).id)
    until(lambda: platform.job(again)["state"] == "succeeded", "a new child takes the next")
    assert len(platform.effects.of(job)) == 1
