"""kill -9 of each process of the platform, at each point: every deployment reaches a true end."""

from __future__ import annotations

import os
import signal
import time
from uuid import UUID

import pytest

from tests.e2e.platform import Platform
from tests.e2e.process import children, is_alive, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

#: The promise is that the death of a process is noticed within 5 seconds; on a machine that others use as well, the
#: statement that records it may take a moment longer.
NOTICED_SECONDS = 8.0


def test_a_caller_that_dies_right_after_its_commit_has_its_deployment_run(platform: Platform) -> None:
    platform.worker()
    first = platform.deploy("--seconds", "0.2", app="app-1")
    code = f"""
import os
from worker import app, publish
publish.Line.ring = lambda self, bells: os.kill(os.getpid(), 9)
from db.connection import get_db_session
from db.service import DatabaseService
from db.models import Deployment
with get_db_session() as session:
    old = session.get(Deployment, {first.id})
    DatabaseService(session).create_deployment(old.user_id, old.application_id, old.infrastructure_id, "2")
"""
    assert platform.start("caller", "-c", code).wait() == -signal.SIGKILL
    rows = until(lambda: platform.rows("SELECT id, job_id FROM deployments WHERE version = '2'"), "it was committed")
    until(lambda: platform.deployment(rows[0]["id"])["status"] == "success", "it ran")
    assert platform.story(str(rows[0]["job_id"])) == ["enqueued", "started", "succeeded"]
    platform.check_effects(first)


@pytest.mark.parametrize("claimed", [False, True], ids=["before its claim", "before its answer"])
def test_a_worker_that_dies_with_a_doorbell_in_its_hand_loses_nothing(platform: Platform, claimed: bool) -> None:
    """Killed while its claim waits for the row. The statement has been sent: either the database gives it up, or
    carries it out for a worker that is dead, which is seen at once. In both cases nothing had started."""
    deployed = platform.deploy("--seconds", "0.2")
    with platform.locked_row(deployed.job):
        worker = platform.worker()
        until(lambda: platform.waits_in("ops_claim"), "the worker's claim waits for the row")
        worker.kill()
        if not claimed:
            until(lambda: not platform.waits_in("ops_claim"), "the claim was given up")
    if claimed:
        until(lambda: platform.job(deployed.job)["state"] == "running", "a dead worker holds the job")
    platform.worker("w2")
    assert platform.wait_ended(deployed) == "success"
    twice = ["enqueued", "started", "retried", "started", "succeeded"]
    assert platform.story(deployed.job) == (twice if claimed else ["enqueued", "started", "succeeded"])
    platform.check_effects(deployed)


def test_a_worker_killed_in_the_middle_ends_its_deployment_truthfully(platform: Platform) -> None:
    """The supervisor sees its worker die, kills the driver at once, and says so; the next of the key runs then."""
    worker = platform.worker()
    deployed = platform.deploy("--gate", "/nowhere", "--stubborn", "yes")
    waiting = platform.deploy("--gate", "/nowhere", "--stubborn", "yes")
    pid = platform.wait_begun(deployed)
    worker.kill()
    until(lambda: not is_alive(pid), "the effect is dead", NOTICED_SECONDS)
    assert platform.wait_ended(deployed, NOTICED_SECONDS) == "error: interrupted"
    assert "worker died" in platform.deployment(deployed.id)["error_message"]
    assert platform.story(deployed.job) == ["enqueued", "started", "failed"]
    platform.worker("w2")
    second = platform.wait_begun(waiting)
    platform.cancel(waiting)
    assert platform.wait_ended(waiting) == "cancelled"
    assert not is_alive(second)
    platform.check_effects(deployed, waiting)


def test_a_killed_pool_child_ends_its_deployment_and_the_worker_goes_on(platform: Platform) -> None:
    worker = platform.worker(processes=1)
    deployed = platform.deploy("--gate", "/nowhere")
    pid = platform.wait_begun(deployed)
    (child,) = worker.children
    os.kill(child, signal.SIGKILL)
    assert platform.wait_ended(deployed, NOTICED_SECONDS) == "error: interrupted"
    assert not is_alive(pid)
    after = platform.deploy("--seconds", "0.1", infra="other")
    assert platform.wait_ended(after) == "success"
    assert worker.is_alive
    platform.check_effects(deployed, after)


def test_a_killed_supervisor_takes_its_driver_along(platform: Platform) -> None:
    """Alone, and together with its worker's child: nothing of the effect is alive when the next holder starts."""
    worker = platform.worker(processes=2)
    alone = platform.deploy("--gate", "/nowhere", "--stubborn", "yes", infra="alone")
    both = platform.deploy("--gate", "/nowhere", "--stubborn", "yes", infra="both")
    effects = [platform.wait_begun(each) for each in (alone, both)]
    (supervisor,) = platform.supervisors(worker, effects[0])
    os.kill(supervisor, signal.SIGKILL)
    assert platform.wait_ended(alone) == "error: lost"
    assert "supervisor died" in platform.deployment(alone.id)["error_message"]
    (supervisor,) = platform.supervisors(worker, effects[1])
    (child,) = (each for each in worker.children if supervisor in children(each))
    for each in (supervisor, child):
        os.kill(each, signal.SIGKILL)
    assert platform.wait_ended(both) == "error: lost"
    assert not any(map(is_alive, effects))
    after = platform.deploy("--seconds", "0.1", infra="both")
    assert platform.wait_ended(after) == "success"
    platform.check_effects(alone, both, after)


def test_a_worker_killed_after_the_driver_ended_and_before_it_said_so_leaves_a_lost_deployment(
    platform: Platform,
) -> None:
    """The effect has happened, and nobody is left who saw it: `error: lost`, and it is not started again."""
    worker = platform.worker()
    gate = platform.folder / "gate"
    deployed = platform.deploy("--gate", str(gate))
    pid = platform.wait_begun(deployed)
    supervisors = [each for child in worker.children for each in children(child)]
    with worker.frozen():
        gate.touch()
        until(lambda: not is_alive(pid), "the effect has ended")
        until(lambda: not any(map(is_alive, supervisors)), "its supervisor has gone")
        for each in [*worker.children, worker.pid]:
            os.kill(each, signal.SIGKILL)
    platform.worker("w2")
    assert platform.wait_ended(deployed) == "error: lost"
    assert "nobody can know" in platform.deployment(deployed.id)["error_message"]
    assert platform.story(deployed.job) == ["enqueued", "started", "lost"]
    platform.check_effects(deployed)
    assert platform.effects.of(deployed.job)[0].ended


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_the_death_of_a_process_is_noticed_within_five_seconds(platform: Platform, victim: str) -> None:
    """Also for an application's own task, whose effect happens in the worker's child itself."""
    worker, _ = platform.workers("w1", "w2", app="tests.e2e.shop", queues="shop")
    shop = platform.call_as("tests.e2e.shop")
    gate = platform.folder / "gate"
    jobs = [str(task.delay(str(platform.effects.file), str(gate)).id) for task in (shop.charge, shop.copy)]
    until(lambda: len(platform.effects.read()) == 2, "both have begun")
    mine = [job for job in jobs if platform.job(job)["worker"] == f"w1@{os.uname().nodename}"]
    if not mine:
        worker = platform.processes[1]
        mine = jobs
    killed_at = time.monotonic()
    for each in worker.children if victim == "child" else [worker.pid]:
        os.kill(each, signal.SIGKILL)
    for job in mine:
        until(lambda job=job: platform.job(job)["attempt"] != 1 or platform.job(job)["state"] != "running", "noticed")
    assert time.monotonic() - killed_at < NOTICED_SECONDS
    gate.touch()
    charge, copy = jobs
    until(lambda: platform.job(copy)["state"] == "succeeded", "the one that may happen again has ended well")
    state = until(lambda: (r := platform.job(charge))["state"] in ("failed", "succeeded") and r, "the other has ended")
    assert (state["state"], state["outcome"]) == (("failed", "lost") if charge in mine else ("succeeded", "ok"))
    assert len(platform.effects.of(charge)) == 1
    assert UUID(charge)
