"""A heartbeat reports by curl from any cron host; who does not know its id learns nothing."""

from __future__ import annotations

import subprocess
from typing import Any
from uuid import uuid4

import pytest

from db.connection import get_db_session
from db.service import DatabaseService
from db.services import checks
from tests.conftest import Database
from tests.worker.serve.conftest import Server


@pytest.fixture
def token(database: Database) -> str:
    """A heartbeat's id."""
    with get_db_session() as session:
        owner = DatabaseService(session).create_user_with_audit("ann", "ann@example.org", role="admin")
        session.flush()
        made = checks.add(
            session, owner_id=owner.id, name="nightly", kind="heartbeat",
            config={"period_seconds": 3600, "grace_seconds": 60},
        )  # fmt: skip
        return str(made.ping_token)


def standing(sql: Any) -> tuple[Any, ...]:
    return sql("SELECT beat_at IS NOT NULL, beat_failed, beat_started_at IS NOT NULL FROM check_states")[0]


def test_curl_reports_a_start_a_success_and_a_failure(server: Server, token: str, sql) -> None:
    url = f"{server.url}/ping/{token}"
    assert standing(sql) == (False, False, False)
    assert (
        subprocess.run(["curl", "-fsS", "-m", "10", f"{url}/start"], capture_output=True, check=True).stdout == b"OK\n"
    )
    assert standing(sql) == (False, False, True)
    subprocess.run(["curl", "-fsS", "-m", "10", "-d", "what a job has printed", url], check=True, capture_output=True)
    assert standing(sql)[:2] == (True, False)
    assert server.ask(f"/ping/{token}/fail", "POST").status == 200
    assert standing(sql)[:2] == (True, True)
    assert server.ask(f"/ping/{token}").status == 200
    assert standing(sql)[:2] == (True, False)


def test_an_id_that_nobody_has_gets_the_same_answer(server: Server, token: str) -> None:
    known, unknown = server.ask(f"/ping/{token}"), server.ask(f"/ping/{uuid4()}")
    assert (known.status, known.body) == (unknown.status, unknown.body)
    assert {**known.headers, "date": ""} == {**unknown.headers, "date": ""}


def test_what_is_no_ping_changes_nothing(server: Server, token: str, sql) -> None:
    assert server.ask(f"/ping/{token}", "HEAD").status == 405
    assert server.ask(f"/ping/{token}", "DELETE").status == 405
    for path in ("/ping/", "/ping/nightly", "/ping/1", f"/ping/{token}/end", f"/ping/{token}/fail/x", "/ping/%00"):
        assert server.ask(path).status == 404, path
    assert server.ask(f"/ping/{token}", "POST", b"x" * 70_000).status == 413
    assert standing(sql) == (False, False, False)


def test_one_that_reports_all_the_time_is_slowed_down_and_others_are_not(server: Server, token: str) -> None:
    answers = [server.ask(f"/ping/{token}") for _ in range(15)]
    assert answers[0].status == 200
    assert answers[-1].status == 429
    assert int(answers[-1].headers["retry-after"]) > 0
    assert server.ask(f"/ping/{uuid4()}").status == 200


def test_the_id_is_logged_nowhere(server: Server, token: str, sql) -> None:
    others = "pid <> pg_backend_pid() AND usename = current_user"
    sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    server.ask(f"/ping/{token}")
    server.ask(f"/ping/{token}/nothing")
    code, remarks = server.stop()
    assert code == 0
    assert token not in remarks
    assert sql("SELECT count(*) FROM audit_logs WHERE audit_logs::text LIKE %s", f"%{token}%") == [(0,)]
