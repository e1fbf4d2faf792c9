"""The rules by which the platform watches itself: each fires on the real thing, and no sooner."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.errors import InvalidInput, NotFound, PermissionDenied
from db.services import evaluation, failures, measures, outages, pausing, rules, secrets
from db.services.rules import RULES
from tests.conftest import SCHEMA
from tests.db.services.conftest import encryption_key, one_line
from worker.cli.root import app

ROOT = Path(rules.__file__).parent.parent.parent


@pytest.fixture
def run_sql(session: Session) -> Callable[..., None]:
    def run(statement: str, **values: object) -> None:
        session.execute(text(statement.replace("{s}", SCHEMA)), values)
        session.commit()

    return run


def beyond(session: Session, name: str) -> list[str]:
    """The things for which a rule's value is beyond its threshold."""
    rule = rules.effective(session, name)
    found = [each.subject for each in rule.measure(session) if rule.is_beyond(each.value)]
    session.rollback()
    return found


def test_a_healthy_platform_raises_nothing_but_that_no_beat_lives(session):
    assert evaluation.evaluate(session, [rules.observe]) == {"pending": 1}
    (title,) = session.scalars(text(f"SELECT title FROM {SCHEMA}.monitoring_alerts"))
    assert title == "no beat was seen: nothing is due in time"


def test_a_deployment_that_should_start_or_end_is_stuck(session, asked, run, run_sql):
    assert beyond(session, "deployment_stuck") == []
    run_sql("UPDATE {s}.jobs SET run_at = now() - interval '301 s'")
    name = f"deployment {asked.id} of shop to here"
    assert beyond(session, "deployment_stuck") == [name]
    run(asked, None)
    assert beyond(session, "deployment_stuck") == []
    run_sql("UPDATE {s}.jobs SET deadline_at = now() - interval '301 s'")
    assert beyond(session, "deployment_stuck") == [name]


def test_a_due_job_ages_its_queue_unless_a_lock_holds_it_up_or_the_ledger_is_paused(session, asked, run_sql):
    run_sql("UPDATE {s}.jobs SET run_at = now() - interval '400 s'")
    assert beyond(session, "queue_age") == ["deployments"]
    run_sql(
        "INSERT INTO {s}.jobs (id, task, queue, state, lock_key, lease_until, lease_token, attempt) SELECT"
        " gen_random_uuid(), 't', 'other', 'running', lock_key, now() + interval '1 h', gen_random_uuid(), 1"
        " FROM {s}.jobs"
    )
    assert beyond(session, "queue_age") == []
    pausing.pause(session)
    session.commit()
    for name in ("queue_age", "deployment_stuck"):
        with pytest.raises(measures.CannotTell):
            RULES[name].measure(session)


def test_a_queue_with_work_wants_a_worker_and_so_does_one_whose_worker_died(session, asked, run_sql):
    assert beyond(session, "no_worker") == ["deployments"]
    insert = (
        "INSERT INTO {s}.processes (id, kind, name, host, pid, info, seen_at) VALUES (:id, :kind, 'w@h', 'h', 1,"
        " cast(:info AS jsonb), now() - make_interval(secs => :ago))"
    )
    run_sql(insert, id="a", kind="worker", info='{"queues": ["deployments"]}', ago=1)
    run_sql(insert, id="b", kind="worker", info='{"queues": ["emails"]}', ago=60)
    assert beyond(session, "no_worker") == ["emails"]
    assert beyond(session, "beat_silent") == [""]
    run_sql(insert, id="c", kind="beat", info="{}", ago=1)
    assert beyond(session, "beat_silent") == []


def test_a_worker_says_how_full_its_disk_is(session, run_sql):
    info = '{"disk": {"path": "/srv", "used_percent": 97.5}}'
    run_sql(
        "INSERT INTO {s}.processes (id, kind, name, host, pid, info, seen_at)"
        " VALUES ('a', 'worker', 'w@alpha', 'h', 1, cast(:info AS jsonb), now())",
        info=info,
    )
    assert beyond(session, "disk_full") == ["alpha /srv"]


def test_the_trail_is_watched_for_growth_months_and_attacks(session, run_sql, database):
    assert beyond(session, "audit_growth") == beyond(session, "partitions_missing") == []
    rules.change(session, name="audit_growth", threshold=100)
    run_sql("SELECT count({s}.ops_audit('user.login_failed', 'user', NULL)) FROM generate_series(1, 25)")
    assert beyond(session, "audit_growth") == [""]
    assert beyond(session, "auth_failures") == [""]
    with database.connect("ops_owner") as owner:
        months = owner.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_logs'::regclass ORDER BY 1"
        ).fetchall()
        for (month,) in months[2:]:
            owner.execute(f"DROP TABLE {month}")
    assert beyond(session, "partitions_missing") == ["the audit trail"]
    with database.connect("ops_owner") as owner:
        days = owner.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'check_results'::regclass ORDER BY 1"
        ).fetchall()
        for (day,) in days[2:]:
            owner.execute(f"DROP TABLE {day}")
    assert beyond(session, "partitions_missing") == ["the audit trail", "check results"]


def test_connections_and_long_statements_are_seen(session, database):
    rules.change(session, name="pool_exhausted", threshold=0)
    rules.change(session, name="slow_queries", threshold=0)
    session.commit()
    assert beyond(session, "pool_exhausted") == [""]
    assert beyond(session, "slow_queries") == []
    with database.connect() as other:
        waiting = threading.Thread(target=wait_in, args=(other,))
        waiting.start()
        try:
            while not (found := beyond(session, "slow_queries")):
                assert waiting.is_alive()
        finally:
            other.cancel()
            waiting.join()
        assert found == [""]


def wait_in(connection: psycopg.Connection) -> None:
    with suppress(psycopg.errors.QueryCanceled):
        connection.execute("SELECT pg_sleep(60)")


def test_values_that_do_not_open_are_counted(session, anna, run_sql):
    secrets.store(session, user_id=anna.id, service_name="a", key_name="b", value="secret")
    session.commit()
    assert beyond(session, "decryption_failing") == beyond(session, "decryption_slow") == []
    run_sql("UPDATE {s}.api_keys SET encrypted_value = 'v1:gone:x'")
    assert beyond(session, "decryption_failing") == [""]
    with encryption_key(""), pytest.raises(measures.CannotTell):
        RULES["decryption_failing"].measure(session)


def test_seals_are_not_missed_where_nobody_seals(session):
    with pytest.raises(measures.CannotTell):
        RULES["seal_lag"].measure(session)


def test_a_rule_that_cannot_be_measured_leaves_its_alerts_as_they_are(session, asked, run_sql):
    run_sql("UPDATE {s}.jobs SET run_at = now() - interval '400 s'")
    look = [rules.observe]
    assert evaluation.evaluate(session, look)["raised"] == 2  # the queue's age, and the deployment
    pausing.pause(session)
    session.commit()
    assert evaluation.evaluate(session, look) is None


def test_a_rule_is_changed_in_part_and_one_that_is_disabled_resolves_its_alerts(session, asked, run_sql, anna, person):
    run_sql("UPDATE {s}.jobs SET run_at = now() - interval '400 s'")
    rules.change(session, name="queue_age", threshold=350, severity="low")
    rules.change(session, name="queue_age", for_seconds=0)
    rule = rules.effective(session, "queue_age")
    assert (rule.threshold, rule.severity, rule.for_seconds, rule.is_changed) == (350, "low", 0, True)
    evaluation.evaluate(session, [rules.observe])
    session.commit()
    rules.change(session, name="queue_age", enabled=False)
    assert evaluation.evaluate(session, [rules.observe])["resolved"] == 1
    for kind, values in (
        (NotFound, {"name": "nothing"}),
        (InvalidInput, {"name": "queue_age", "threshold": -1}),
        (InvalidInput, {"name": "queue_age", "threshold": float("nan")}),
        (InvalidInput, {"name": "queue_age", "severity": "sideways"}),
        (PermissionDenied, {"name": "queue_age", "enabled": True, "actor": anna}),
    ):
        with pytest.raises(kind) as error:
            rules.change(session, **values)
        one_line(error)


def test_the_trail_tells_who_changed_a_rule(session, sql):
    rules.change(session, name="queue_age", threshold=1)
    session.commit()
    assert sql("SELECT action, resource_id FROM audit_logs WHERE resource_type = 'alert_rule'") == [
        ("alert_rule.created", "queue_age")
    ]


def test_every_rule_has_a_runbook_whose_commands_exist():
    kinds = {*RULES} - {outages.DOWN}
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert kinds == pages
    known = command_names()
    for name in RULES:
        page = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text()
        assert f"`{name}`" in page
        for command in re.findall(r"`ops ([a-z][a-z -]*)", page):
            words = command.split()
            assert words[0] in known or " ".join(words[:2]) in known, command


def command_names() -> set[str]:
    import typer

    root = typer.main.get_command(app)
    names = set()
    for name, command in root.commands.items():
        names |= {f"{name} {each}" for each in command.commands} if hasattr(command, "commands") else {name}
    return names


def test_a_failed_deployment_can_be_left_alone(session, asked, run):
    run(asked, "failed", "no")
    rules.change(session, name=failures.DEPLOYMENT_FAILED, enabled=False)
    assert evaluation.evaluate(session, [failures.observe]) is None
    rules.change(session, name=failures.DEPLOYMENT_FAILED, enabled=True, severity="critical")
    assert evaluation.evaluate(session, [failures.observe]) == {"raised": 1}
