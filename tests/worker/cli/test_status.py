"""`ops status` tells in one screen what somebody on duty has to know."""

from __future__ import annotations

from db import migrate
from tests.worker.cli.conftest import Ops


def test_what_is_wrong_stands_on_one_screen(ready: Ops, sql) -> None:
    ready("check", "add", "site", "celery", "checks")
    ready("check", "add", "other", "celery", "deployments")
    sql("UPDATE check_states SET state = 'down', seen = 'down', last_message = 'nobody answers' WHERE check_id = 1")
    for name in ("nightly", "hourly"):
        ready("schedule", "add", name, "--every", "1h", "--task", "t", "--queue", "q")
    sql("UPDATE schedules SET paused_at = now(), paused_because = '3 failures in a row', next_run_at = NULL "
        "WHERE name = 'nightly'")  # fmt: skip
    ready("schedule", "pause", "hourly")
    sql("INSERT INTO monitoring_alerts (fingerprint, alert_type, severity, title, status, fired_at) "
        "VALUES ('f', 'check', 'high', 'site is down', 'firing', now())")  # fmt: skip
    sql("INSERT INTO processes (id, kind, name, host, pid, info, started_at, seen_at, draining_at) "
        "VALUES (gen_random_uuid(), 'worker', 'checks@web1', 'web1', 1, '{}', now(), now(), now())")  # fmt: skip
    told = ready("status").stdout
    for line in ("site is down", "nobody answers", "3 failures in a row", "1 drained: checks@web1"):
        assert line in told, told
    assert "checks: 1 down, 1 unknown" in told
    assert "hourly" not in told, "somebody paused it on purpose"
    status = ready("status", "--json").json
    assert [each["name"] for each in status["checks_down"]] == ["site"]
    assert [each["name"] for each in status["schedules_paused"]] == ["nightly"]
    assert [each["title"] for each in status["firing"]] == ["site is down"]
    assert status["checks"] == {"down": 1, "unknown": 1}


def test_what_does_not_stand_on_the_screen_is_counted(ready: Ops, sql) -> None:
    for number in range(12):
        ready("check", "add", f"site{number}", "celery", "checks")
    sql("UPDATE check_states SET state = 'down', seen = 'down'")
    sql("INSERT INTO monitoring_alerts (fingerprint, alert_type, severity, title, status, fired_at) "
        "SELECT n, 'check', 'high', 'a site is down', 'firing', now() FROM generate_series(1, 13) n")  # fmt: skip
    told = ready("status").stdout
    assert "and 3 more that are open: ops alert list" in told
    assert "and 2 more: ops check list --state down" in told


def test_workers_without_a_beat_and_tables_of_another_release_are_told_of(ready: Ops, sql) -> None:
    sql("INSERT INTO processes (id, kind, name, host, pid, info, seen_at) "
        "VALUES (gen_random_uuid(), 'worker', 'checks@web1', 'web1', 1, '{}', now() + interval '1 h')")  # fmt: skip
    assert "no beat lives" in ready("status").stdout
    sql("INSERT INTO processes (id, kind, name, host, pid, info, seen_at) "
        "VALUES (gen_random_uuid(), 'beat', 'beat@web1', 'web1', 1, '{}', now() + interval '1 h')")  # fmt: skip
    assert "no beat lives" not in ready("status").stdout
    newest, before = (each.revision for each in migrate.history()[:2])
    try:
        assert ready("db", "downgrade", "--yes", "--json", "--", "-1").json == {"revision": before}
        told = ready("status").stdout
        assert f"cannot be used: the database is at migration {before}, this release needs {newest}" in told
        assert "does not answer: the database" not in told
    finally:
        migrate.upgrade()
