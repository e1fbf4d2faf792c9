"""`ops schedule`, as it is typed."""

from __future__ import annotations

import re

from tests.worker.cli.conftest import Ops

DEPLOY = ("--deploy", "web", "--to", "local", "--version", "v1")
TASK = ("--task", "shop.report", "--queue", "shop")


def test_a_schedule_is_added_shown_changed_paused_resumed_and_removed(ready: Ops, sql) -> None:
    added = ready(
        "--json", "schedule", "add", "nightly", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", *DEPLOY,
        "--pause-on-failure", "3",
    ).json  # fmt: skip
    assert (added["when"], added["what"], added["state"], added["user"]) == (
        "30 2 * * * (Europe/Berlin)", "deploy web v1 to local", "active", "ann",
    )  # fmt: skip
    assert "nightly" in ready("schedule", "list").stdout
    edited = ready("--json", "schedule", "edit", "nightly", "--version", "v2", "--pause-on-failure", "0").json
    assert (edited["what"], edited["pause_on_failure"]) == ("deploy web v2 to local", None)
    assert edited["next_run_at"] == added["next_run_at"]
    paused = ready("--json", "schedule", "pause", "nightly", "--reason", "freeze").json
    assert paused["paused_because"] == "freeze"
    assert ready("--json", "schedule", "next", "nightly").json == {"items": []}
    assert ready("--json", "schedule", "resume", "nightly").json["next_run_at"] == added["next_run_at"]
    run = ready("--json", "schedule", "run-now", "nightly").json
    assert (run["outcome"], run["by_hand"], run["deployment_id"]) == ("enqueued", True, 1)
    assert ready("--json", "schedule", "show", "nightly").json["runs"][0]["job_id"] == run["job_id"]
    assert "enqueued" in ready("schedule", "show", "nightly").stdout
    assert ready("schedule", "rm", "nightly").code == 0
    assert ready("schedule", "show", "nightly").code == 6
    assert sql("SELECT DISTINCT details->>'via' FROM audit_logs WHERE action = 'schedule.updated' ORDER BY 1") == [
        ("ops schedule edit",), ("ops schedule pause",), ("ops schedule resume",),
    ]  # fmt: skip


def test_the_next_times_of_all_are_shown_in_order_and_in_their_own_zone(ready: Ops) -> None:
    ready("schedule", "add", "often", "--every", "10m", *TASK)
    ready("schedule", "add", "rare", "--cron", "0 3 1 1 *", "--timezone", "Asia/Kathmandu", *TASK)
    times = ready("--json", "schedule", "next", "-n", "3").json["items"]
    assert [each["name"] for each in times] == ["often"] * 3
    assert times == sorted(times, key=lambda each: each["at"])
    (only,) = ready("--json", "schedule", "next", "rare", "-n", "1").json["items"]
    assert only["local"].endswith("-01-01 03:00:00 +0545")
    assert "no next time" not in ready("schedule", "next", "rare").stdout


def test_a_task_gets_what_it_was_given(ready: Ops, sql) -> None:
    ready("schedule", "add", "report", "--every", "1h", *TASK, "--args", '[1, "a b"]', "--kwargs", '{"x": null}')
    ready("schedule", "edit", "report", "--queue", "other")
    ready("schedule", "run-now", "report")
    assert sql("SELECT task, queue, args, kwargs FROM jobs") == [("shop.report", "other", [1, "a b"], {"x": None})]


BAD = [
    (["add", "x", *TASK], 2, "one of cron, every and once"),
    (["add", "x", "--every", "1h"], 2, "one of deploy and task"),
    (["add", "x", "--every", "1h", *DEPLOY, *TASK], 2, "deploys .* or enqueues"),
    (["add", "x", "--every", "1h", "--task", "t"], 2, "queue"),
    (["add", "x", "--every", "1h", "--deploy", "web", "--version", "v1"], 2, "infrastructure"),
    (["add", "x", "--every", "sometimes", *TASK], 2, "90s"),
    (["add", "x", "--cron", "* *", *TASK], 2, "five fields"),
    (["add", "x", "--cron", "0 0 * * *", "--timezone", "Moon", *TASK], 2, "time zone"),
    (["add", "x", "--once", "2001-01-01T00:00", *TASK], 2, "has passed"),
    (["add", "x", "--every", "1h", *TASK, "--args", "{"], 2, "--args is no JSON"),
    (["add", "x", "--every", "1h", *TASK, "--kwargs", "[1]"], 2, "kwargs"),
    (["add", "x", "--every", "1h", "--deploy", "nothing", "--to", "local", "--version", "v"], 6, "no application"),
    (["add", "a b", "--every", "1h", *TASK], 2, "a name is up to"),
    (["edit", "there"], 2, "nothing to change"),
    (["edit", "missing", "--every", "1h"], 6, "no schedule 'missing'"),
    (["resume", "there"], 5, "is not paused"),
    (["add", "there", "--every", "1h", *TASK], 5, "exists already"),
    (["next", "missing"], 6, "no schedule"),
    (["next", "-n", "0"], 2, "--count"),
]


def test_bad_input_is_one_line_and_writes_nothing(ready: Ops, sql) -> None:
    ready("schedule", "add", "there", "--every", "1h", *TASK)
    before = sql("SELECT count(*), max(version_id) FROM schedules")
    for arguments, code, says in BAD:
        done = ready("schedule", *arguments)
        assert done.code == code, (arguments, done)
        assert re.search(says, done.error), (arguments, done.error)
    assert sql("SELECT count(*), max(version_id) FROM schedules") == before
