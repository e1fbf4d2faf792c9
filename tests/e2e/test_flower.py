"""Flower shows, to whoever has the password, and does nothing; what it hears may be anybody's word."""

from __future__ import annotations

import json
import os
import time
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e import hostile
from tests.e2e.flower import Flower
from tests.e2e.platform import Platform
from tests.e2e.process import until
from worker.flower import MAX_NAMES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

SCRIPT = "<script>alert(1)</script>"


def test_nothing_is_shown_without_the_password(platform: Platform) -> None:
    flower = Flower(platform)
    pages = ("/", "/workers", "/tasks", "/task/x", "/broker", "/worker/x", "/api/workers", "/api/tasks",
             "/api/task/types", "/metrics", "/healthcheck", "/tasks/datatable")  # fmt: skip
    for page in pages:
        for password in (None, "wrong", "é", "", "pass-word\0"):
            status, _, body = flower.ask(page, password)
            assert (status, b"celery" in body.lower()) == (401, False), (page, password)
    assert "Traceback" not in flower.process.text
    _, headers, _ = flower.ask("/")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_it_does_not_start_without_a_password_or_with_one_that_it_would_read_as_two(platform: Platform) -> None:
    for number, environment in enumerate(
        ({}, {"DEBUG": "true"}, {"FLOWER_BASIC_AUTH": "ann:pass,word"}, {"FLOWER_BASIC_AUTH": "ann:"})
    ):
        process = platform.start(
            f"f{number}", "-m", "celery", "-A", "worker.app", "flower", "--address=127.0.0.1", "--port=1",
            **environment,  # type: ignore[arg-type]
        )  # fmt: skip
        assert process.wait() == 2
        assert "FLOWER_BASIC_AUTH" in process.text
        assert "Traceback" not in process.text


def test_its_api_starts_and_stops_nothing(platform: Platform) -> None:
    worker = platform.worker()
    flower = Flower(platform)
    host = f"w1@{os.uname().nodename}"
    before = platform.rows("SELECT count(*) FROM jobs")
    for path in (
        f"/api/worker/shutdown/{host}", f"/api/worker/pool/shrink/{host}?n=2", f"/api/worker/pool/restart/{host}",
        f"/api/worker/queue/cancel-consumer/{host}?queue=deployments", f"/api/task/revoke/{uuid4()}?terminate=true",
        f"/api/task/async-apply/{hostile.RUN}", f"/api/task/send-task/{hostile.RUN}", f"/api/task/apply/{hostile.RUN}",
    ):  # fmt: skip
        assert flower.ask(path, method="POST")[0] in (401, 403), path
    assert platform.rows("SELECT count(*) FROM jobs") == before
    assert platform.wait_ended(platform.deploy("--seconds", "0.1")) == "success"
    assert worker.is_alive


def event(kind: str, **more: Any) -> str:
    body = {"type": kind, "hostname": "w9@nowhere", "utcoffset": 0, "pid": 1, "clock": 1, "timestamp": time.time()}
    return encoded(body | more)


def encoded(body: Any) -> str:
    found = hostile.message("x", "y")
    found["body"] = hostile.base64.b64encode(json.dumps(body).encode()).decode()
    found["properties"]["delivery_info"] = {"exchange": "celeryev", "routing_key": "task.x"}
    return json.dumps(found | {"headers": {"hostname": "w9@nowhere"}})


def jobs_of(platform: Platform) -> list[str]:
    """All deployments, and one more."""
    assert platform.wait_ended(platform.deploy("--seconds", "0.1")) == "success"
    return [str(row["id"]) for row in platform.rows("SELECT id FROM jobs ORDER BY seq DESC")]


def test_forged_events_neither_fill_it_nor_speak_to_whoever_looks(platform: Platform) -> None:
    worker = platform.worker()
    flower = Flower(platform)
    channel = "/0.celeryev/task.x"
    until(lambda: b'worker="w1@' in flower.ask("/metrics")[2], "it hears the worker's own events")
    pipe = platform.broker.pipeline(transaction=False)
    for raw in ("junk", encoded([]), encoded(5), encoded({}), encoded({"type": 5}), event("task-received"),
                event("task-received", uuid=[]), event("worker-online", hostname={}), event("task-x", uuid="1"),
                event("task-succeeded", uuid="1", name=["a"], runtime="long"), event("worker-heartbeat", timestamp="x"),
                event("worker-heartbeat", clock="x"), event("worker-heartbeat", utcoffset="x")):  # fmt: skip
        pipe.publish(channel, raw)
    mark = {"uuid": SCRIPT, "name": SCRIPT, "args": SCRIPT, "kwargs": SCRIPT, "hostname": SCRIPT}
    for kind in ("task-received", "task-started", "task-failed"):
        pipe.publish(channel, event(kind, **mark, exception=SCRIPT, traceback=SCRIPT))
    pipe.publish(channel, event("worker-online", hostname=SCRIPT, sw_ident=SCRIPT, sw_ver=SCRIPT))
    for number in range(3 * MAX_NAMES):
        many = {"uuid": str(number), "hostname": f"host {number}", "name": f"task {number}"}
        pipe.publish(channel, event("task-received", **many))
    assert min(pipe.execute()) >= 1, "somebody hears them"
    until(lambda: b'worker="host 1"' in flower.ask("/metrics")[2], "it believes what may be true")
    # At what is no message Flower hangs up and calls again: what is said meanwhile it does not hear.
    until(lambda: any(flower.knows(job, "SUCCESS") for job in jobs_of(platform)), "it still hears what is true")
    assert flower.ask("/metrics")[2].count(b"flower_events_total{") < 2 * MAX_NAMES
    for page in ("/", "/tasks", f"/task/{SCRIPT.replace('/', '%2F')}", f"/worker/{SCRIPT.replace('/', '%2F')}"):
        assert SCRIPT.encode() not in flower.ask(page)[2], page
    assert flower.process.is_alive
    assert worker.is_alive
