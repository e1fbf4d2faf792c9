"""`ops alert|rule|silence|maintenance|channel|route`: what they print, and what they refuse in one line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from db.connection import get_db_session
from db.services import evaluation, rules
from tests.worker.cli.conftest import Ops

SECRET = "pi-3.14159-nobody-shows"


@pytest.fixture
def firing(ready: Ops, sql: Callable[..., list[tuple]]) -> Ops:
    """With an open alert: no beat lives."""
    sql("INSERT INTO alert_rules (name, for_seconds) VALUES ('beat_silent', 0)")
    with get_db_session() as session:
        evaluation.evaluate(session, [rules.observe])
    return ready


def test_an_alert_is_looked_after_and_its_timeline_says_by_whom(firing: Ops):
    (item,) = firing("alert", "list", "--json").json["items"]
    assert (item["status"], item["severity"], item["alert_type"]) == ("firing", "critical", "beat_silent")
    assert firing("alert", "ack", "1").stdout == "alert 1 is acknowledged by ann\n"
    assert firing("alert", "assign", "alert:1").code == 0
    assert firing("alert", "note", "1", "we know\x1b[2J").code == 0
    assert firing("alert", "silence", "1", "--for", "2h", "--comment", "known").code == 0
    assert firing("alert", "resolve", "1").code == 0
    shown = firing("alert", "show", "1", "--json").json
    assert [event["kind"] for event in shown["timeline"]] == [
        "raised", "acknowledged", "assigned", "note", "silenced", "resolved",
    ]  # fmt: skip
    assert {event["actor"] for event in shown["timeline"][1:]} == {"ann"}
    assert (shown["assigned_to"], shown["resolved_by"]) == ("ann", "ann")
    assert "\x1b" not in firing("alert", "show", "1").stdout
    assert firing("alert", "list").stdout == "no open alerts\n"
    assert len(firing("alert", "list", "--all", "--json").json["items"]) == 1


def test_who_could_not_be_told_is_named(firing: Ops, sql):
    firing("channel", "add", "pager", "webhook", "--url", "https://pager.example.com/hook")
    sql(
        "INSERT INTO notifications (alert_id, channel_id, transition, group_key, due_at) "
        "VALUES (1, 1, 'raised', '', now())"
    )
    assert "raised       pager     waiting" in firing("alert", "show", "1").stdout
    (told,) = firing("alert", "show", "1", "--json").json["notifications"]
    assert (told["channel"], told["channel_id"]) == ("pager", 1)


def test_silences_and_maintenance_are_listed_until_they_end(ready: Ops):
    assert ready("silence", "add", "--match", "check=web*", "--for", "30m").code == 0
    assert (
        ready("maintenance", "add", "new disks", "--match", "application=web", "--from", "1h", "--for", "2h").code == 0
    )
    assert ready("silence", "list", "--json").json["items"][0]["matchers"] == {"check": "web*"}
    (window,) = ready("maintenance", "list", "--json").json["items"]
    begins, ends = window["starts_at"], window["ends_at"]
    assert begins < ends
    assert ready("silence", "end", "1").code == 0
    assert ready("maintenance", "end", "1").code == 0
    assert ready("silence", "list").stdout == "no silences\n"
    assert len(ready("silence", "list", "--all", "--json").json["items"]) == 1
    assert ready("silence", "end", "1").code == 5


def test_what_reaches_a_channel_comes_from_stdin_and_is_shown_to_nobody(ready: Ops):
    added = ready("channel", "add", "chat", "apprise", stdin=f"json://127.0.0.1:1/{SECRET}\n")
    assert added.code == 0, added.stderr
    assert ready("channel", "add", "mail", "smtp", "--host", "localhost", "--username", "u", "--from", "a@b.c", "--to",
                 "d@e.f", stdin=SECRET).code == 0  # fmt: skip
    assert (
        ready("channel", "add", "hook", "webhook", "--secret", stdin=f"http://127.0.0.1:1/{SECRET}\n{SECRET}").code == 0
    )
    listed = ready("channel", "list", "--json")
    assert [item["name"] for item in listed.json["items"]] == ["hook", "mail", "chat"]
    assert SECRET not in listed.stdout + added.stdout
    tested = ready("channel", "test", "hook", "--json")
    assert (tested.code, tested.json) == (1, {"channel": "hook", "taken": False, "error": "connection refused"})
    assert ready("channel", "key", "hook").stdout.strip() == SECRET
    assert ready("channel", "key", "mail").code == 5
    assert ready("channel", "disable", "hook", "--because", "moving").code == 0
    assert ready("channel", "enable", "hook").code == 0
    assert ready("channel", "enable", "hook").code == 5
    assert ready("channel", "rm", "hook").code == 0


def test_a_channel_takes_its_routes_along_and_says_so(ready: Ops):
    for name in ("one", "two"):
        ready("channel", "add", name, "webhook", "--url", "http://127.0.0.1:1/")
    ready("route", "add", "one")
    ready("route", "add", "two", "--severity", "high")
    gone = ready("channel", "rm", "two")
    assert (gone.stdout, gone.stderr) == ("channel two is removed with 1 route\n", "")
    assert "nobody is told of alerts" in ready("channel", "rm", "one").stderr


def test_routes_and_rules(ready: Ops):
    ready("channel", "add", "hook", "webhook", "--url", "http://127.0.0.1:1/")
    added = ready("route", "add", "hook", "--severity", "high", "--match", "check=web", "--wait", "1m", "--repeat", "0")
    assert added.stdout == "route 1: check=web, high and above, goes to hook\n"
    (route,) = ready("route", "list", "--json").json["items"]
    assert (route["channel"], route["wait_seconds"], route["repeat_seconds"]) == ("hook", 60, 0)
    assert ready("route", "rm", "1").code == 0
    assert ready("rule", "set", "queue_age", "--threshold", "600", "--for", "2m").stdout == (
        "rule queue_age fires at > 600 s\n"
    )
    assert ready("rule", "disable", "slow_queries").stdout == "rule slow_queries is disabled\n"
    assert ready("rule", "enable", "slow_queries").code == 0
    found = {item["name"]: item for item in ready("rule", "list", "--json").json["items"]}
    assert (found["queue_age"]["threshold"], found["queue_age"]["for_seconds"]) == (600, 120)
    assert len(found) == 16


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["alert", "show", "99"], 6, "there is no alert 99"),
        (["alert", "show", "x; rm"], 2, "is not the number of an alert"),
        (["alert", "ack", "9" * 30], 2, "is not the number of an alert"),
        (["alert", "list", "--status", "sideways"], 2, "is none of"),
        (["alert", "silence", "1", "--for", "soon"], 2, "is no time"),
        (["silence", "add", "--match", "nothing"], 2, "is no NAME=VALUE"),
        (["silence", "add", "--match", "A B=c"], 2, "a label's name"),
        (["silence", "add", "--match", "a=b", "--for", "0s"], 2, "it must end"),
        (["silence", "add", "--match", "a=b", "--for", "365d"], 2, "90 days at most"),
        (["maintenance", "add", "", "--match", "a=b"], 2, "title"),
        (["channel", "add", "x", "pigeon"], 2, "kind"),
        (["channel", "add", "x", "webhook", "--url", "ftp://x"], 2, "an http or https address"),
        (["channel", "add", "x", "webhook", "--url", "http://x", "--header", "Host=y"], 2, "the platform's to set"),
        (["channel", "add", "x", "webhook", "--url", "http://x", "--rate", "0"], 2, "rate_limit"),
        (["channel", "add", "x", "apprise"], 2, "needed: the address"),
        (["channel", "add", "x", "smtp"], 2, "host"),
        (["channel", "test", "x"], 6, "there is no channel 'x'"),
        (["route", "add", "x"], 6, "there is no channel 'x'"),
        (["route", "rm", "7"], 6, "there is no route 7"),
        (["rule", "set", "nothing", "--threshold", "1"], 6, "there is no rule 'nothing'"),
        (["rule", "set", "queue_age"], 2, "nothing to change is named"),
        (["rule", "set", "queue_age", "--for", "soon"], 2, "is no duration"),
        (["rule", "set", "queue_age", "--threshold", "nan"], 2, "threshold"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(ready: Ops, arguments, code, says):
    done = ready(*arguments)
    assert (done.code, says in done.error) == (code, True), done.stderr
    assert ready("channel", "list", "--json").json["items"] == []


def test_every_command_has_an_example():
    from typer.main import get_command

    from worker.cli.root import app

    for noun in ("alert", "rule", "silence", "maintenance", "channel", "route"):
        for name, command in get_command(app).commands[noun].commands.items():
            assert re.search(r"Example: .*ops ", f"{command.help} {command.epilog}"), f"{noun} {name}"
