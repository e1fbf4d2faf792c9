"""Whoever can write to the broker can ring, and nothing more: no effect, no dead worker, no flooded audit trail."""

from __future__ import annotations

import json
import os
import random
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e import hostile
from tests.e2e.platform import Platform
from tests.e2e.process import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REASONS = {"duplicate", "unknown", "wrong_task", "malformed", "not_a_task", "refused_command"}


def drained(platform: Platform, seconds: float = 120) -> None:
    until(lambda: platform.depth("deployments") + platform.depth("control") == 0, "the queues are empty", seconds)


def dropped(platform: Platform) -> dict[str, int]:
    """What the workers have said that they threw away, by reason; they say the rest when they end."""
    rows = platform.rows("SELECT resource_id, details FROM audit_logs WHERE action = 'message.dropped'")
    found: dict[str, int] = {}
    for row in rows:
        found[row["resource_id"]] = found.get(row["resource_id"], 0) + row["details"]["count"]
    assert set(found) <= REASONS
    return found


def works(platform: Platform) -> None:
    """A good deployment runs."""
    deployed = platform.deploy("--seconds", "0.1", infra="good")
    assert platform.wait_ended(deployed) == "success"


def test_one_job_delivered_fifty_times_at_once_to_four_workers_runs_once(platform: Platform) -> None:
    workers = platform.workers("w1", "w2", "w3", "w4")
    deployed = platform.deploy("--seconds", "0.5")
    again = platform.deploy("--seconds", "0.2", infra="again")
    with platform.locked_row(again.job):
        for _ in range(50):
            platform.ring(again.job)
        until(lambda: platform.waits_in("ops_claim") >= 4, "claims of several workers wait for the row")
    assert platform.wait_ended(deployed) == "success"
    assert platform.wait_ended(again) == "success"
    drained(platform)
    platform.check_effects(deployed, again)
    assert platform.job(again.job)["attempt"] == 1
    assert platform.story(again.job) == ["enqueued", "started", "succeeded"]
    assert platform.stop(*workers) == [0, 0, 0, 0]
    assert dropped(platform)["duplicate"] >= 40


@pytest.mark.parametrize("count", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_forged_replayed_and_malformed_messages_have_no_effect(platform: Platform, count: int) -> None:
    """Ten thousand of them, and in the short suite fewer."""
    workers = platform.workers("w1", "w2")
    pids = [worker.pid for worker in workers]
    gate = platform.folder / "gate"
    done = platform.deploy("--seconds", "0.1", infra="done")
    assert platform.wait_ended(done) == "success"
    cancelled = platform.deploy(infra="runs")
    runs = platform.deploy("--gate", str(gate), infra="runs")
    platform.wait_ended(cancelled)
    platform.wait_begun(runs)
    jobs_before = platform.rows("SELECT count(*) FROM jobs")[0]["count"]
    queues = ["deployments", "deployments\x06\x163", "control", "deployments\x06\x169"]
    pipe = platform.broker.pipeline(transaction=False)
    for number, raw in enumerate(hostile.flood(seed=7, count=count, jobs=[done.job, runs.job])):
        pipe.lpush(queues[number % 4], raw)
    pipe.execute()
    platform.broker.lpush("deployments", hostile.bomb())
    drained(platform, 180)
    works(platform)
    assert platform.job(runs.job)["state"] == "running"
    gate.touch()
    assert platform.wait_ended(runs) == "success"
    assert all(worker.is_alive for worker in workers)
    assert [worker.pid for worker in workers] == pids
    for worker in workers:
        assert "signal 9" not in worker.text
        assert "Unrecoverable" not in worker.text
        assert worker.text.count("Trying to re-establish") == 0
    assert platform.rows("SELECT count(*) FROM jobs")[0]["count"] == jobs_before + 1
    platform.check_effects(done, runs)
    assert platform.stop(*workers) == [0, 0]
    counts = dropped(platform)
    assert sum(counts.values()) >= 0.7 * count
    assert {"unknown", "duplicate", "malformed", "not_a_task"} <= set(counts)
    # One per worker, reason and minute, and one more of each at the end.
    rows = platform.rows("SELECT count(*) FROM audit_logs WHERE action = 'message.dropped'")[0]["count"]
    assert rows <= 2 * len(REASONS) * 6


def test_a_string_that_is_not_json_on_a_queue_is_dropped(platform: Platform) -> None:
    """Guards a defect of Celery 5.7 on Redis: `Unrecoverable error: JSONDecodeError`, and the worker is gone."""
    worker = platform.worker()
    children = worker.children
    for queue in ("deployments", "control"):
        platform.broker.lpush(queue, "not json", b"\xff\xfe", "", '{"headers": {}}')
    drained(platform)
    works(platform)
    assert worker.is_alive
    assert worker.children == children
    assert "Unrecoverable" not in worker.text
    assert worker.stop() == 0
    assert dropped(platform)["malformed"] == 8


NO_BATCHES = [
    [], ["x", [1]], ["-" * 1000 + str(uuid4()), [1]], [str(uuid4()), []], [str(uuid4()), "abc"], [str(uuid4()), [0]],
    [str(uuid4()), [10**30]], [str(uuid4()), ["\0"]], [str(uuid4()), [True]], [str(uuid4()), list(range(1, 300_000))],
    [None, None], [{}, {}], [str(uuid4()), [1], 2],
]  # fmt: skip


def test_batches_that_nobody_of_ours_has_sent_are_counted_and_cost_nothing(platform: Platform) -> None:
    """Not even lines of the log."""
    worker = platform.worker(queues="checks,deployments")
    for args in NO_BATCHES:
        forged = hostile.message("tasks.checks.run_batch", str(uuid4()), args, queue="checks")
        platform.broker.lpush("checks", json.dumps(forged))
    until(lambda: platform.depth("checks") == 0, "the queue is empty")
    works(platform)
    assert worker.is_alive
    assert worker.stop() == 0
    assert dropped(platform) == {"malformed": len(NO_BATCHES)}
    assert "Traceback" not in worker.text


def junk_for_mailboxes(dice: random.Random) -> Any:
    body = {
        "method": dice.choice(["ping", "shutdown", "stats", "no_such", 17, None]),
        "arguments": dice.choice([{}, {"a": 1}, [], "x", None, 5]),
        "destination": dice.choice([None, [], ["celery@nobody"], 5, "x", {}]),
        "pattern": dice.choice([None, "(a+)+$", "*", 5]),
        "matcher": dice.choice([None, "pcre", "glob", "no_such"]),
        "reply_to": dice.choice([None, {}, {"exchange": "", "routing_key": "deployments"}, 5]),
        "ticket": dice.choice([None, 5, "x"]),
    }
    for name in list(body):
        if dice.random() < 0.1:
            del body[name]
    found = hostile.message("x", "y")
    found["body"] = hostile.base64.b64encode(json.dumps(dice.choice([body, body, body, [], 5])).encode()).decode()
    found["properties"]["delivery_info"] = {"exchange": "celery.pidbox", "routing_key": ""}
    if dice.random() < 0.2:
        place = dice.choice([found, found["properties"], found["headers"]])
        place[dice.choice(sorted(place))] = dice.choice(hostile.WRONG)
    return found


def test_junk_in_mailboxes_and_in_what_the_broker_keeps_for_itself_harms_nobody(platform: Platform) -> None:
    worker = platform.worker()
    broker, dice = platform.broker, random.Random(11)
    channels = broker.pubsub_channels() + broker.execute_command("PUBSUB", "CHANNELS")
    names = {"/0.celery.pidbox", "/0.celeryev", "/0.celeryev/task.multi", *(each.decode() for each in channels)}
    for _ in range(500):
        for name in names:
            raw = hostile.junk(dice) if dice.random() < 0.3 else json.dumps(junk_for_mailboxes(dice))
            broker.publish(name, raw)
    for key in ("unacked", "unacked_index", "_kombu.binding.deployments", "_kombu.binding.control"):
        broker.delete(key)
    broker.hset("unacked", mapping={"a": "junk", "b": "[1,2,3]", "c": '[{}, "control", "control"]'})
    broker.zadd("unacked_index", {"a": 1, "b": 2, "c": 3, "d": 4})
    for exchange in ("control", "deployments", "celery.pidbox", "reply.celery.pidbox", "celeryev"):
        key = f"_kombu.binding.{exchange}"
        broker.sadd(key, "junk", b"\xff\xfe", "a\x06\x16b", "control\x06\x16\x06\x16somewhere else")
    works(platform)
    assert worker.is_alive
    assert platform.inspect("ping")
    late = platform.worker("w2")
    works(platform)
    assert worker.is_alive
    assert late.is_alive
    assert "Traceback" not in worker.text + late.text


def test_keys_of_the_wrong_type_in_the_broker_are_put_right(platform: Platform) -> None:
    worker = platform.worker()
    broker = platform.broker

    def spoil() -> None:
        for key in ("deployments", "deployments\x06\x163", "control"):
            broker.delete(key)
            broker.set(key, "not a list")
        for exchange in ("control", "celery.pidbox", "reply.celery.pidbox"):
            broker.delete(f"_kombu.binding.{exchange}")
            broker.set(f"_kombu.binding.{exchange}", "not a set")

    spoil()
    works(platform)
    spoil()
    late = platform.worker("w2")
    works(platform)
    assert worker.is_alive
    assert late.is_alive


HARMFUL: list[tuple[str, dict[str, Any]]] = [
    ("shutdown", {}),
    ("pool_shrink", {"n": 2}),
    ("pool_grow", {"n": 50}),
    ("pool_restart", {}),
    ("autoscale", {"max": 1, "min": 0}),
    ("cancel_consumer", {"queue": "deployments"}),
    ("add_consumer", {"queue": "elsewhere"}),
    ("time_limit", {"task_name": hostile.RUN, "soft": 0.01, "hard": 0.01}),
    ("rate_limit", {"task_name": hostile.RUN, "rate_limit": "1/h"}),
    ("disable_events", {}),
    ("hello", {"from_node": "celery@nobody", "revoked": {}}),
    ("objgraph", {"num": 10**9}),
]


def test_remote_control_cannot_stop_a_worker_or_its_work(platform: Platform) -> None:
    worker = platform.worker()
    gate = platform.folder / "gate"
    runs = platform.deploy("--gate", str(gate))
    pid = platform.wait_begun(runs)
    children = worker.children
    next_in_line = platform.deploy("--seconds", "0.1")
    ids = [runs.job, next_in_line.job]
    harmful = [
        *HARMFUL,
        ("revoke", {"task_id": ids, "terminate": True, "signal": "SIGKILL"}),
        ("terminate", {"task_id": ids, "signal": "SIGKILL"}),
        ("revoke_by_stamped_headers", {"headers": {"a": "b"}, "terminate": True}),
    ]
    for command, arguments in harmful:
        answers = platform.inspect(command, **arguments)
        assert [list(answer) for answer in answers.values()] == [["error"]], (command, answers)
    gate.touch()
    assert platform.wait_ended(runs) == "success"
    assert platform.wait_ended(next_in_line) == "success"
    assert platform.effects.of(runs.job)[0].pid == pid
    assert worker.children == children
    assert worker.stop() == 0
    assert dropped(platform)["refused_command"] == len(harmful)


def test_what_celery_inspect_and_flower_ask_for_is_answered(platform: Platform) -> None:
    platform.worker()
    gate = platform.folder / "gate"
    runs = platform.deploy("--gate", str(gate))
    platform.wait_begun(runs)
    name = f"w1@{os.uname().nodename}"
    assert platform.inspect("ping")[name] == {"ok": "pong"}
    assert platform.inspect("stats")[name]["pool"]["max-concurrency"] == 2
    assert [task["id"] for task in platform.inspect("active")[name]] == [runs.job]
    assert hostile.RUN in platform.inspect("registered")[name]
    assert {queue["name"] for queue in platform.inspect("active_queues")[name]} == {"deployments", "control"}
    assert "broker_url" in platform.inspect("conf")[name]
    for command in ("reserved", "scheduled", "revoked", "report", "clock", "query_task", "enable_events"):
        arguments = {"ids": [runs.job]} if command == "query_task" else {}
        assert "error" not in platform.inspect(command, **arguments)[name]
    ping = platform.start("inspect", "-m", "celery", "-A", "worker.app", "inspect", "ping", "-d", name)
    assert ping.wait() == 0
    gate.touch()
    assert platform.wait_ended(runs) == "success"


def test_an_operator_may_have_all_of_celerys_remote_control(platform: Platform) -> None:
    worker = platform.worker(OPS_REMOTE_CONTROL="full")
    name = f"w1@{os.uname().nodename}"
    assert platform.inspect("rate_limit", task_name=hostile.RUN, rate_limit="10/s")[name]["ok"]
    works(platform)
    platform.inspect("shutdown")
    assert worker.wait() == 0
