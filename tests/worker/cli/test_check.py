"""`ops check` and `ops heartbeat`: what they print, and what they refuse in one line."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def site(ready):
    assert ready("check", "add", "site", "http", "http://example.org/", "--label", "team=web", "--public").code == 0
    return ready


def test_a_check_is_added_listed_shown_changed_and_removed(site, sql):
    (item,) = site("check", "list", "--json").json["items"]
    assert (item["name"], item["kind"], item["state"], item["public"]) == ("site", "http", "unknown", True)
    assert site("check", "list", "--state", "down").stdout.strip() == "no checks"
    assert len(site("check", "list", "--label", "team=web", "--json").json["items"]) == 1
    assert (
        site("check", "edit", "site", "--every", "15", "--set", "status=200,204", "--set", "json_equals:=5").code == 0
    )
    shown = site("check", "show", "site", "--json").json
    assert (shown["interval_seconds"], shown["config"]["status"], shown["config"]["json_equals"]) == (15, "200,204", 5)
    assert shown["config"]["url"] == "http://example.org/"
    assert site("check", "rm", "site").code == 0
    assert sql("SELECT count(*) FROM monitoring_checks") == [(0,)]


def test_settings_are_hidden_in_the_trail(site, sql):
    rows = sql("SELECT changes ->> 'config' FROM audit_logs WHERE action = 'check.created'")
    assert rows == [('[null, "[secret]"]',)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "ping", "y"], "'ping' is no kind of check; known are: http, tcp"),
        (["x", "http"], "what is to be looked at is missing; for example: ops check add NAME http https://"),
        (["x", "http", "example.org"], "config.url: an http or https address is needed"),
        (["x", "tcp", "example.org"], "a port is missing"),
        (["x", "tcp", "example.org:http"], "'example.org:http' is no address"),
        (["x", "tcp", "example.org:99999"], "config.port: Input should be less than or equal to 65535"),
        (["x", "http", "http://x", "--set", "colour=red"], "config.colour: unknown; known are: url, method, "),
        (["x", "http", "http://x", "--set", "oops"], "--set 'oops': write FIELD=TEXT or FIELD:=JSON"),
        (["x", "http", "http://x", "--set", "headers:={"], "--set headers:= is followed by what is no JSON"),
        (["x y", "http", "http://x"], "name: a name is up to 63 letters"),
        (["x", "http", "http://x", "--every", "1"], "interval_seconds: Input should be greater than or equal to 5"),
        (["x", "http", "http://x", "--app", "nope"], "there is no application 'nope'"),
        (["x", "heartbeat", "not a cron"], "config.cron: not a cron line"),
        (["x", "system", "temperature"], "config.metric: Input should be"),
        (["x", "postgres", "db.example.org"], "config.user: Field required"),
        (["x", "http", "http://x", "--every", "often"], "--every: 'often' is no duration; write 90s"),
        (["x", "http", "http://x", "--set", 'basic:={"user": "me", "pass": "x/y"}'], "config.basic.secret: Field"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(ready, sql, arguments, says):
    done = ready("check", "add", *arguments)
    assert done.code in (2, 6)
    assert done.error.startswith(says)
    assert sql("SELECT count(*) FROM monitoring_checks") == [(0,)]


def test_addresses_are_taken_apart(ready):
    for target, expected in (
        ("db.example.org:5432", {"host": "db.example.org", "port": 5432}),
        ("[2001:db8::1]:443", {"host": "2001:db8::1", "port": 443}),
        ("192.0.2.7:80", {"host": "192.0.2.7", "port": 80}),
    ):
        made = ready("check", "add", f"c{expected['port']}", "tcp", target)
        assert made.code == 0, made.stderr
        config = ready("check", "show", f"c{expected['port']}", "--json").json["config"]
        assert config.items() >= expected.items()


def test_pausing_resuming_and_unknown_names(site):
    assert site("check", "pause", "site").stdout == "check site is paused\n"
    again = site("check", "pause", "site")
    assert (again.code, again.error) == (5, "check site is paused already")
    refused = site("check", "run-now", "site")
    assert (refused.code, refused.error) == (5, "check site is paused")
    assert site("check", "resume", "site", "--json").json["state"] == "unknown"
    missing = site("check", "show", "nope")
    assert (missing.code, missing.error) == (6, "there is no check 'nope'")
    assert site("check", "edit", "site").error == "nothing to change is named"
    assert site("check", "list", "--state", "broken").code == 2


def test_history_of_a_check_that_never_ran_and_of_one_that_did(site, sql):
    assert "no results yet" in site("check", "history", "site").stdout
    for number, (status, latency) in enumerate((("up", 0.1), ("up", 0.4), ("down", 5.0), ("unknown", None))):
        sql(
            "INSERT INTO check_results (check_id, at, status, latency_seconds) "
            "SELECT id, now() - interval '1 minute' + %s * interval '1 s', %s, %s FROM monitoring_checks",
            number, status, latency,
        )  # fmt: skip
    shown = site("check", "history", "site").stdout
    assert "▁" in shown
    assert "✗?" in shown
    told = site("check", "history", "site", "--json").json
    assert [each["status"] for each in told["results"]] == ["up", "up", "down", "unknown"]
    assert set(told["uptime_percent"]) == {"24 hours", "7 days", "30 days", "90 days"}


def test_how_often_is_said_as_people_say_it(ready):
    made = ready("check", "add", "site", "http", "http://example.org/", "--every", "5m", "--retry", "30s", "--json")
    assert (made.json["interval_seconds"], made.json["retry_seconds"]) == (300, 30)
    assert ready("heartbeat", "add", "nightly", "--period", "1d", "--grace", "30m").code == 0
    config = ready("check", "show", "nightly", "--json").json["config"]
    assert (config["period_seconds"], config["grace_seconds"]) == (86400, 1800)
    refused = ready("heartbeat", "add", "never")
    assert (refused.code, "either --period 1d or --cron" in refused.error) == (2, True)


def test_what_a_check_belongs_to_is_shown_by_name(ready):
    ready("check", "add", "site", "http", "http://example.org/", "--app", "web")
    shown = ready("check", "show", "site", "--json").json
    assert (shown["application"], shown["infrastructure"]) == ("web", None)


def test_a_lost_token_is_shown_to_its_owner_and_that_is_recorded(ready, sql):
    made = ready("heartbeat", "add", "backup", "--period", "3600")
    shown = ready("heartbeat", "token", "backup")
    assert shown.code == 0
    assert f"/ping/{shown.stdout.strip()}\n" in made.stdout, "and it is what whoever adds it is told to ask for"
    recorded = "SELECT count(*) FROM audit_logs WHERE action = 'check.token_shown'"
    assert sql(recorded) == [(1,)]
    ready("user", "add", "carl", "carl@example.com", "--role", "operator")
    refused = ready("heartbeat", "token", "backup", user="carl")
    assert (refused.code, refused.error) == (
        5, "looking at the tokens of others needs the role admin; carl is operator",
    )  # fmt: skip
    ready("check", "add", "site", "http", "http://example.org/")
    assert ready("heartbeat", "token", "site").error == "check site is no heartbeat"
    assert sql(recorded) == [(1,)]


def test_a_heartbeat_reports_here_or_by_its_token(ready, sql):
    made = ready("heartbeat", "add", "backup", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--json").json
    assert made["ping_token"]
    assert ready("heartbeat", "ping", "backup").code == 0
    assert sql("SELECT beat_at IS NOT NULL, beat_failed FROM check_states") == [(True, False)]
    assert ready("heartbeat", "ping", "backup", "--fail").code == 0
    assert sql("SELECT beat_failed, next_run_at <= now() FROM check_states") == [(True, True)]
    assert ready("heartbeat", "ping", "backup", "--fail", "--start").code == 2
    ready("check", "add", "site", "http", "http://example.org/")
    assert ready("heartbeat", "ping", "site").error == "check site is no heartbeat"
    assert "ping_token" not in json.dumps(ready("check", "show", "backup", "--json").json)
