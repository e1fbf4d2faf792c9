"""`ops apply` of what watches and who is told: checks, rules, channels with their routes; and the order of hosts."""

from __future__ import annotations

import json

import pytest

from db.connection import get_db_session
from db.repositories import ChannelRepository
from db.services import channels
from tests.worker.cli.conftest import Ops

DOCUMENT = """checks:
  site:
    kind: http
    config: {url: "https://example.org/", status: 200-299}
    interval_seconds: 30
    labels: {team: web}
    application: web
    infrastructure: local
  backup:
    kind: heartbeat
    config: {cron: 30 2 * * *}
rules:
  queue_age: {threshold: 600}
  slow_queries: {enabled: false}
channels:
  pager:
    kind: webhook
    config: {url: "https://pager.example.com/hook"}
    routes:
      - {severity: high}
      - {matchers: {team: web}, group_by: [team]}
  mail:
    kind: smtp
    config: {host: mail.example.com, username: ops, sender: ops@example.com, to: [oncall@example.com]}
    secrets: {password: mail/password}
  chat:
    kind: apprise
    secrets: {url: chat/url}
"""
SECRETS = {"mail/password": "hunter2-and-more", "chat/url": "slack://TokenA/TokenB/TokenC"}


@pytest.fixture
def stocked(ready: Ops) -> Ops:
    for name, value in SECRETS.items():
        assert ready("secret", "set", name, stdin=value).code == 0
    return ready


def reached(name: str) -> dict:
    with get_db_session(read_only=True) as session:
        return channels.open_config(ChannelRepository(session).require_by_name(name))


def actions(done) -> list[tuple[str, str]]:
    return [(each["action"], each["name"]) for each in done.json["changes"]]


def test_it_is_made_so_and_a_second_time_changes_and_opens_nothing(stocked: Ops, apply, facts, sql) -> None:
    done = apply(DOCUMENT, "--json")
    assert done.code == 0, done
    names = ["site", "backup", "queue_age", "slow_queries", "pager", "mail", "chat"]
    assert actions(done) == [("create", name) for name in names]
    shown = stocked("--json", "check", "show", "site").json
    assert (shown["interval_seconds"], shown["application_id"], shown["config"]["status"]) == (30, 1, "200-299")
    rules = {rule["name"]: rule for rule in stocked("--json", "rule", "list").json["items"]}
    assert (rules["queue_age"]["threshold"], rules["slow_queries"]["enabled"]) == (600, False)
    assert reached("mail")["password"] == SECRETS["mail/password"]
    assert reached("chat")["url"] == SECRETS["chat/url"]
    assert sql("SELECT severity, group_by FROM notification_routes ORDER BY id") == [("high", []), ("low", ["team"])]
    opened = "SELECT details->>'name', details->>'channel' FROM audit_logs WHERE action = 'secret.opened' ORDER BY 1"
    assert sql(opened) == [("chat/url", "chat"), ("mail/password", "mail")]
    before = facts()
    again = apply(DOCUMENT)
    assert (again.code, again.stdout) == (0, "no changes\n")
    assert facts() == before


def test_what_was_exported_is_nothing_new_and_tells_of_no_way_to_reach_anybody(stocked: Ops, apply, facts) -> None:
    apply(DOCUMENT)
    before = facts()
    exported = stocked("export").stdout
    for secret in (*SECRETS.values(), "pager.example.com", "mail.example.com", "oncall", "mail/password"):
        assert secret not in exported, exported
    assert apply(exported, "--prune").stdout == "no changes\n"
    assert facts() == before
    assert json.loads(stocked("export", "--json", "rules").stdout) == {
        "rules": {"queue_age": {"threshold": 600.0}, "slow_queries": {"enabled": False}}
    }


def test_a_secret_that_was_stored_anew_is_taken_again(stocked: Ops, apply) -> None:
    apply(DOCUMENT)
    stocked("secret", "set", "mail/password", stdin="another password")
    done = apply(DOCUMENT, "--json")
    assert actions(done) == [("change", "mail")]
    assert list(done.json["changes"][0]["fields"]) == ["secrets.password"]
    assert "another password" not in done.stdout
    assert reached("mail")["password"] == "another password"
    assert apply(DOCUMENT).stdout == "no changes\n"


def test_what_a_channel_is_not_told_stays_and_what_was_stored_is_not_shown(stocked: Ops, apply) -> None:
    apply(DOCUMENT)
    assert apply("channels:\n  mail: {kind: smtp, rate_limit: 30}\n", "--json").json["changes"][0]["fields"] == {
        "rate_limit": [None, 30]
    }
    assert reached("mail")["password"] == SECRETS["mail/password"]
    elsewhere = (
        "channels:\n  mail:\n    kind: smtp\n    rate_limit: 30\n    config: "
        "{host: new.example.com, username: ops, sender: ops@example.com, to: [oncall@example.com]}\n"
    )
    done = apply(elsewhere)
    assert "    config.host: (not shown) -> new.example.com" in done.stdout
    assert "mail.example.com" not in done.stdout
    assert (reached("mail")["host"], reached("mail")["password"]) == ("new.example.com", SECRETS["mail/password"])
    assert apply(elsewhere).stdout == "no changes\n"


def test_a_channel_that_was_added_by_hand_keeps_its_address(stocked: Ops, apply) -> None:
    stocked("channel", "add", "hook", "webhook", stdin="https://hook.example.com/s3cret-path")
    document = "channels:\n  hook:\n    kind: webhook\n    config: {headers: {X-Team: web}}\n"
    assert apply(document).code == 0
    assert reached("hook")["url"] == "https://hook.example.com/s3cret-path"
    assert apply(document).stdout == "no changes\n"
    stocked("secret", "set", "hook/url", stdin="https://hook.example.com/another")
    named = document + "    secrets: {url: hook/url}\n"
    assert apply(named).code == 0
    assert reached("hook")["url"] == "https://hook.example.com/another"
    assert apply(named).stdout == "no changes\n"


def test_routes_before_the_first_difference_stay(stocked: Ops, apply, sql) -> None:
    apply(DOCUMENT)
    ids = [row[0] for row in sql("SELECT id FROM notification_routes ORDER BY id")]
    done = apply(DOCUMENT.replace("group_by: [team]", "group_by: [team, severity]"), "--json")
    assert actions(done) == [("change", "pager")]
    assert sql("SELECT min(id) FROM notification_routes") == [(ids[0],)]
    apply("channels:\n  pager: {kind: webhook, routes: []}\n")
    assert sql("SELECT count(*) FROM notification_routes") == [(0,)]


def test_what_a_check_is_not_told_is_as_by_default_and_its_standing_stays(stocked: Ops, apply, sql) -> None:
    apply(DOCUMENT)
    sql("UPDATE check_states SET state = 'up', seen = 'up', next_run_at = now() + interval '1 hour' RETURNING 1")
    done = apply(
        "checks:\n  site: {kind: http, config: {url: 'https://example.org/'}, interval_seconds: 30}\n", "--json"
    )
    assert done.json["changes"][0]["fields"] == {
        "labels.team": ["web", None], "application": ["web", None], "infrastructure": ["local", None]
    }  # fmt: skip
    due = sql("SELECT state, next_run_at > now() FROM check_states JOIN monitoring_checks c ON c.id = check_id "
              "WHERE c.name = 'site'")  # fmt: skip
    assert due == [("up", True)]


def test_pruning_removes_checks_and_channels_and_puts_rules_back(stocked: Ops, apply) -> None:
    apply(DOCUMENT)
    assert actions(apply("checks: {}\nchannels: {}\nrules: {}\n", "--json")) == []
    done = apply("checks:\nrules: {queue_age: {threshold: 600}}\nchannels:\n", "--prune", "--json")
    assert sorted(actions(done)) == sorted(
        ("remove", name) for name in ("site", "backup", "slow_queries", "pager", "mail", "chat")
    )
    rules = {rule["name"]: rule for rule in stocked("--json", "rule", "list").json["items"]}
    assert (rules["slow_queries"]["enabled"], rules["slow_queries"]["changed"]) == (True, False)


def test_who_is_no_admin_says_nothing_of_how_channels_are_reached(stocked: Ops, apply, facts) -> None:
    apply(DOCUMENT)
    stocked("user", "add", "olga", "olga@example.org")
    before = facts()
    same = DOCUMENT[DOCUMENT.index("channels:") : DOCUMENT.index("  mail:")]
    refused = apply(same, user="olga")
    assert refused.code == 5
    assert "ops.yaml:2: channels.pager: saying how channels are reached needs the role admin" in refused.error
    assert facts() == before


@pytest.mark.parametrize(
    ("document", "line", "says"),
    [
        ("checks:\n  a: {kind: http}\n", 2, "checks.a.config: Field required"),
        ("checks:\n  a:\n    kind: http\n    config: {url: ftp://x}\n", 4, "checks.a.config.url"),
        ("checks:\n  a:\n    kind: ftp\n    config: {}\n", 3, "checks.a.kind"),
        ("checks:\n  a:\n    kind: celery\n    config: {queue: q}\n    interval_seconds: 1\n", 5, "interval_seconds"),
        ("checks:\n  a:\n    kind: celery\n    config: {queue: q}\n    application: moon\n", 5, "application 'moon'"),
        ("checks:\n  a:\n    kind: celery\n    config: {queue: q}\n    ping_token: x\n", 5, "ping_token"),
        ("rules:\n  queue_age:\n    threshold: -1\n", 3, "rules.queue_age.threshold"),
        ("rules:\n  queue_age:\n    treshold: 1\n", 3, "rules.queue_age.treshold"),
        ("rules:\n  nothing:\n    threshold: 1\n", 2, "there is no rule 'nothing'"),
        ("channels:\n  a: {kind: webhook}\n", 2, "config and secrets must say"),
        ("channels:\n  a:\n    kind: webhook\n    config: {url: x}\n", 4, "channels.a.config.url"),
        ("channels:\n  a:\n    kind: webhook\n    config: {headers: {X-A: b}}\n", 4, "channels.a.config.url"),
        ("channels:\n  a:\n    kind: apprise\n    config: {url: 'slack://a'}\n", 4, "a secret is named, not written"),
        ("channels:\n  a:\n    kind: apprise\n    secrets: {url: slack}\n", 4, "a secret is named SERVICE/NAME"),
        ("channels:\n  a:\n    kind: apprise\n    secrets: {url: no/such}\n", 4, "there is no secret no/such"),
        ("channels:\n  a:\n    kind: apprise\n    secrets: {password: chat/url}\n", 4, "secrets of this kind are: url"),
        ("channels:\n  a:\n    kind: webhook\n    routes:\n      - {severity: loud}\n", 5, "a.routes.0.severity"),
        ("channels:\n  a:\n    kind: smtp\n    config: {host: x, sender: a@b.c, to: []}\n", 4, "channels.a.config.to"),
        ("silences: {}\n", 1, "silences: unknown; known are: applications"),
    ],
)  # fmt: skip
def test_a_bad_document_is_refused_with_the_line_that_is_wrong(
    stocked: Ops, apply, facts, document, line, says
) -> None:
    before = facts()
    done = apply(document)
    assert done.code in (2, 6), done
    assert f"ops.yaml:{line}:" in done.error, done.error
    assert says in done.error, done.error
    assert facts() == before


def test_the_kind_of_a_check_stays(stocked: Ops, apply, facts) -> None:
    apply(DOCUMENT)
    before = facts()
    done = apply("checks:\n  site:\n    kind: celery\n    config: {queue: q}\n")
    assert (done.code, "ops.yaml:3: checks.site.kind: the kind of a check stays" in done.error) == (2, True), done
    assert facts() == before


def test_hosts_are_put_into_the_order_of_the_document(ready: Ops, apply, sql) -> None:
    def document(*names: str) -> str:
        hosts = "".join(f"      {name}: {{address: {name}.example.org}}\n" for name in names)
        return f"infrastructure:\n  local:\n    hosts:\n{hosts}"

    def order() -> list[str]:
        return [row[0] for row in sql("SELECT name FROM hosts ORDER BY position")]

    assert apply(document("a", "b", "c")).code == 0
    ids = dict(sql("SELECT name, id FROM hosts"))
    done = apply(document("c", "a", "b"))
    assert '    order of hosts: ["a", "b", "c"] -> ["c", "a", "b"]' in done.stdout, done
    assert order() == ["c", "a", "b"]
    assert apply(document("c", "a", "b")).stdout == "no changes\n"
    assert apply(document("c", "new", "b", "a")).code == 0
    assert order() == ["c", "new", "b", "a"]
    assert apply(document("b", "new")).code == 0
    assert order() == ["b", "new"]
    assert dict(sql("SELECT name, id FROM hosts"))["b"] == ids["b"], "it is the same host"
    assert apply(ready("export").stdout).stdout == "no changes\n"
