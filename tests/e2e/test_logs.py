"""With OPS_LOG_FORMAT=json a program reads every line of a worker and a beat, and none of them holds a secret."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from db.connection import get_db_session
from db.service import DatabaseService
from tests.e2e.platform import Platform
from tests.e2e.process import Process, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SECRET = "tok-4d1c7e0b-very-secret"


def lines(process: Process) -> list[dict[str, Any]]:
    found = []
    for line in process.text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            pytest.fail(f"{process.name} wrote a line that is no JSON: {line!r}")
    return found


def test_every_line_of_a_worker_and_a_beat_is_an_object_with_ids_and_without_secrets(platform: Platform) -> None:
    worker = platform.worker(queues="deployments,control,checks", OPS_LOG_FORMAT="json")
    beat = platform.beat(OPS_LOG_FORMAT="json")
    user = platform.user
    with get_db_session() as session:
        DatabaseService(session).store_api_key(user, "github", "token", SECRET)
    deployed = platform.deploy("--seconds", "0.1", secrets={"TOKEN": "github/token"})
    assert platform.wait_ended(deployed) == "success"
    failed = platform.deploy(
        command=["/bin/sh", "-c", "echo $TOKEN; exit 3"], app="f", secrets={"TOKEN": "github/token"}
    )
    assert platform.wait_ended(failed) == "failed"
    # Lines of Celery about trouble, with tracebacks: a child that dies, a message that is junk.
    os.kill(worker.children[0], signal.SIGKILL)
    platform.broker.lpush("deployments", "junk")
    until(lambda: platform.tick("alerts"), "a tick ran")
    assert platform.stop(worker, beat) == [0, 0]
    told = lines(worker)
    assert any(line.get("job_id") == deployed.job for line in told), "ours name the job"
    assert any(line.get("task_id") == deployed.job for line in told), "Celery's name it too"
    assert lines(beat)
    for line in told + lines(beat):
        assert {"event", "level", "logger", "pid", "timestamp"} <= set(line), line
    for process in (worker, beat):
        for secret in (SECRET, platform.environment["ENCRYPTION_KEY"], platform.environment["SECRET_KEY"]):
            assert secret not in process.text


def test_a_worker_that_does_not_start_says_so_in_one_object(platform: Platform) -> None:
    process = platform.worker(wait=False, OPS_LOG_FORMAT="json", OPS_BROKER_URL="")
    assert process.wait() == 2
    (line,) = lines(process)
    assert line["event"] == "not_started"
    assert "OPS_BROKER_URL" in line["error"]
