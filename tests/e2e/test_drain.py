"""A worker that drains ends what it runs and takes nothing new; and a file tells whether a process can do its work."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.platform import Platform
from tests.e2e.process import Process, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def ops(platform: Platform, *argv: str) -> Process:
    """`ops` as the admin of this platform."""
    assert platform.user
    name = f"ops-{len(platform.processes)}"
    return platform.start(name, "-c", "from worker.cli import main; main()", *argv, "--json", OPS_USER="ann")


def answer(process: Process) -> tuple[int, Any]:
    code = process.wait()
    return code, json.loads(process.text or "null")


def worker_of(platform: Platform, job: str) -> str:
    return str(platform.job(job)["worker"]).partition("@")[0]


def test_a_draining_worker_ends_what_it_runs_while_the_others_take_the_rest(platform: Platform) -> None:
    platform.worker("w1")
    gate = platform.folder / "gate"
    runs = platform.deploy("--gate", str(gate))
    platform.wait_begun(runs)
    second = platform.worker("w2")
    drain = ops(platform, "drain", "w1", "--wait")
    until(lambda: platform.rows("SELECT 1 FROM processes WHERE info @> '{\"draining\": true}'"), "it has heard")
    others = [platform.deploy("--seconds", "0.1", infra=f"other-{number}") for number in range(6)]
    assert [platform.wait_ended(each) for each in others] == ["success"] * len(others)
    assert {worker_of(platform, each.job) for each in others} == {"w2"}
    assert drain.is_alive, "it waits for what runs"
    gate.touch()
    code, said = answer(drain)
    assert (code, said["drained"], said["running"]) == (0, True, 0)
    assert platform.wait_ended(runs) == "success"
    assert platform.story(runs.job) == ["enqueued", "started", "succeeded"]
    second.stop()
    waits = platform.deploy("--seconds", "0.1", infra="last")
    code, status = answer(ops(platform, "status"))
    assert [each["draining_at"] is not None for each in status["processes"] if each["kind"] == "worker"] == [True]
    assert platform.job(waits.job)["state"] == "queued"
    assert answer(ops(platform, "undrain", "--all"))[0] == 0
    assert platform.wait_ended(waits) == "success"
    trail = platform.rows("SELECT action, actor FROM audit_logs WHERE resource_type = 'worker' ORDER BY id")
    assert [(row["action"], row["actor"]) for row in trail] == [("worker.drained", "ann"), ("worker.undrained", "ann")]


def test_a_worker_drains_on_when_its_broker_comes_back_and_one_started_anew_works(breakable: Platform) -> None:
    first = breakable.worker("w1")
    code, said = answer(ops(breakable, "drain", "--all", "--wait"))
    assert (code, said["drained"]) == (0, True)
    breakable.stack.valkey.kill()
    until(lambda: "Trying to re-establish" in first.text, "it has noticed")
    breakable.stack.start()
    waits = breakable.deploy("--seconds", "0.1")
    until(lambda: breakable.job(waits.job)["rings"] > 0, "its bell was rung")
    until(lambda: first.text.count("Connected to ") > 1, "it is connected again")
    assert (breakable.job(waits.job)["state"], breakable.job(waits.job)["attempt"]) == ("queued", 0)
    first.kill()
    breakable.worker("w1")
    assert breakable.wait_ended(waits) == "success"


def test_waiting_for_a_worker_that_runs_on_ends_after_the_timeout(platform: Platform) -> None:
    platform.worker("w1")
    gate = platform.folder / "gate"
    runs = platform.deploy("--gate", str(gate))
    platform.wait_begun(runs)
    code, said = answer(ops(platform, "drain", "--all", "--wait", "--timeout", "3"))
    assert (code, said["drained"]) == (124, False)
    assert said["running"] <= 1
    gate.touch()
    assert platform.wait_ended(runs) == "success"


def test_draining_nobody_or_everybody_by_accident_is_refused(platform: Platform) -> None:
    assert ops(platform, "drain").wait() == 2
    assert ops(platform, "drain", "w1", "--all").wait() == 2
    assert ops(platform, "drain", "w1").wait() == 6
    viewer = platform.start("viewer", "-c", "from worker.cli import main; main()", "drain", "--all", OPS_USER="nobody")
    assert viewer.wait() == 6


def age(path: Path) -> float:
    return time.time() - path.stat().st_mtime if path.exists() else 1e9


def test_the_alive_file_grows_old_when_a_process_cannot_work_and_is_fresh_when_it_can(breakable: Platform) -> None:
    files = {name: breakable.folder / f"{name}.alive" for name in ("worker", "beat")}
    worker = breakable.worker("w1", OPS_ALIVE_FILE=str(files["worker"]))
    beat = breakable.beat(OPS_ALIVE_FILE=str(files["beat"]))
    until(lambda: max(map(age, files.values())) < 3, "both are fresh")
    breakable.stack.valkey.kill()
    until(lambda: age(files["worker"]) > 8, "a worker that hears no queue grows old")
    breakable.stack.start()
    until(lambda: age(files["worker"]) < 3, "it hears again")
    breakable.stack.postgres.kill()
    until(lambda: min(map(age, files.values())) > 8, "without a database nobody works")
    breakable.stack.start()
    until(lambda: max(map(age, files.values())) < 6, "both work again")
    assert worker.is_alive
    assert beat.is_alive
