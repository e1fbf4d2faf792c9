"""What became of a driver is told truthfully, and what it printed is in the database: masked, in order, bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.models import Deployment, DeploymentLog
from db.services import applications, deployments, infrastructure, users
from db.settings import get_settings
from db.states import Outcome
from tasks import deployments as task
from tasks.deployments import Output, conclude
from tasks.masking import MASK, Masker
from tasks.outcomes import Ended
from tests.conftest import SCHEMA, Database

NOBODY = Masker([])


def outcome(end: dict[str, Any], ended: dict[str, Any], masker: Masker = NOBODY) -> tuple[Outcome, str]:
    with pytest.raises(Ended) as error:
        conclude(end, ended, masker)
    assert "\n" not in error.value.error
    return error.value.outcome, error.value.error


def said(word: str, message: str = "") -> dict[str, Any]:
    return {"event": "end", "outcome": word, "message": message}


def test_success_beats_whatever_was_asked_for_in_the_last_moment():
    for why in ("exit", "cancelled", "timeout", "interrupted", "lease ran out", "supervisor died"):
        assert conclude(said("ok"), {"why": why, "code": 0}, NOBODY) == {}
    assert conclude(said("ok", "v2 is up"), {"why": "exit", "code": 0}, NOBODY) == {"message": "v2 is up"}


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("cancelled", Outcome.CANCELLED),
        ("timeout", Outcome.TIMEOUT),
        ("interrupted", Outcome.INTERRUPTED),
        ("lost", Outcome.INTERRUPTED),
        ("lease ran out", Outcome.INTERRUPTED),
        ("not started", Outcome.INTERRUPTED),
        ("cannot start", Outcome.INTERRUPTED),
        ("supervisor died", Outcome.LOST),
    ],
)
def test_each_way_of_being_ended_has_its_outcome(why, expected):
    found, _ = outcome({}, {"why": why, "code": -9})
    assert found is expected
    assert outcome(said("failed", "command was ended by SIGTERM"), {"why": why, "code": 1})[0] is expected


def test_a_driver_that_said_no_has_failed_and_says_why():
    assert outcome(said("failed", "command exited with 3"), {"why": "exit", "code": 1}) == (
        Outcome.FAILED, "command exited with 3"
    )  # fmt: skip
    assert outcome(said("failed"), {"why": "exit", "code": 1})[0] is Outcome.FAILED


@pytest.mark.parametrize("end", [{}, said("nonsense"), {"event": "end"}])
def test_a_driver_that_ends_without_a_result_is_lost(end):
    found, why = outcome(end, {"why": "exit", "code": 0})
    assert found is Outcome.LOST
    assert "exit code 0" in why
    assert "nobody can know" in why


def test_a_message_shows_no_secret():
    masker = Masker(["hunter2"])
    assert outcome(said("failed", "bad token hunter2"), {"why": "exit"}, masker)[1] == f"bad token {MASK}"
    assert conclude(said("ok", "with hunter2"), {}, masker) == {"message": f"with {MASK}"}


@pytest.fixture
def deployment(session: Session) -> Deployment:
    anna = users.create(session, username="anna", email="anna@example.org")
    shop = applications.register(session, name="shop", command=["x"])
    here = infrastructure.register(session, owner_id=anna.id, name="here")
    made = deployments.create(
        session, user_id=anna.id, application_id=shop.id, infrastructure_id=here.id, version="v1"
    )  # fmt: skip
    session.commit()
    return made


def stored(session: Session) -> list[tuple[str, str]]:
    session.rollback()
    rows = session.scalars(select(DeploymentLog).order_by(DeploymentLog.id))
    return [(row.stream, row.content) for row in rows]


def test_output_is_stored_in_order_masked_and_merged(session, deployment):
    output = Output(deployment.id, 1, Masker(["hunter2"]))
    for stream, piece in (
        ("stdout", "a\n"),
        ("stdout", "b hun"),
        ("stderr", "e\n"),
        ("stdout", "ter2\n"),
        ("nonsense", "x"),
    ):
        output.add(stream, piece)
    output.add("platform", "nul \0 and \ud800\n")
    output.close()
    assert stored(session) == [
        ("stdout", "a\nb "), ("stderr", "e\n"), ("stdout", f"{MASK}\n"),
        ("platform", "nul \N{REPLACEMENT CHARACTER} and ?\n"),
    ]  # fmt: skip


def test_what_may_be_a_secret_comes_with_the_end(session, deployment):
    output = Output(deployment.id, 1, Masker(["hunter2"]))
    output.add("stdout", "hunt")
    output.flush(now=True)
    assert stored(session) == []
    output.close()
    assert stored(session) == [("stdout", "hunt")]


def test_output_is_cut_at_its_limit_and_the_cut_is_seen(session, deployment, monkeypatch):
    monkeypatch.setattr(get_settings(), "deployment_log_bytes", 10_000)
    output = Output(deployment.id, 1, NOBODY)
    for _ in range(5000):
        output.add("stdout", "\N{EURO SIGN}\n")
    output.add("stderr", "lost")
    output.close()
    first, *rest = stored(session)
    assert first == ("stdout", "\N{EURO SIGN}\n" * 2500)
    assert rest == [("platform", "\n[output cut here: 10000 bytes is the limit]\n")]


def test_large_output_is_stored_in_pieces(session, deployment):
    output = Output(deployment.id, 1, NOBODY)
    for _ in range(10):
        output.add("stdout", "x" * 99_999 + "\n")
    output.close()
    kept = stored(session)
    assert "".join(content for _, content in kept) == ("x" * 99_999 + "\n") * 10
    assert max(len(content) for _, content in kept) <= task.PIECE_CHARACTERS


@contextmanager
def away(database: Database) -> Iterator[Callable[[], None]]:
    """The runtime role is put out and not let in, until the function that this gives is called."""
    with database.connect("postgres") as root:
        root.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
        root.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'ops_app'")
        yield lambda: root.execute(f"GRANT CONNECT ON DATABASE {database.name} TO PUBLIC")
        root.execute(f"GRANT CONNECT ON DATABASE {database.name} TO PUBLIC")


def test_output_waits_for_a_database_that_is_away(session, deployment, database, monkeypatch):
    monkeypatch.setattr(task, "FLUSH_SECONDS", 0.01)
    output = Output(deployment.id, 1, NOBODY)
    tried: list[int] = []
    with away(database) as come_back:

        def is_in_haste() -> bool:
            tried.append(1)
            if len(tried) == 3:
                come_back()
            return False

        output.add("stdout", "while it was away\n")
        output.flush(now=True)
        output.add("stdout", "and still\n")
        output.close(is_in_haste)
    assert len(tried) == 3
    assert stored(session) == [("stdout", "while it was away\nand still\n")]


def test_output_does_not_hold_up_a_worker_that_is_to_end(session, deployment, database):
    output = Output(deployment.id, 1, NOBODY)
    output.add("stdout", "line\n")
    with away(database):
        output.close(lambda: True)
    assert stored(session) == []


@contextmanager
def full_disk(database: Database, table: str) -> Iterator[Callable[[], None]]:
    """What is written to this table finds no room, until the function that this gives is called."""
    with database.connect("ops_owner") as owner:
        owner.execute(
            """CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"""
        )
        owner.execute(f"CREATE TRIGGER no_room BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION no_room()")
        yield lambda: owner.execute(f"DROP TRIGGER no_room ON {table}")


def test_output_that_finds_no_room_is_said_with_the_outcome_and_not_half_written(
    session, deployment, database, monkeypatch
):
    monkeypatch.setattr(task, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(task, "FLUSH_SECONDS", 0.01)
    output = Output(deployment.id, 1, NOBODY)
    with full_disk(database, "deployment_logs"):
        output.add("stdout", "one\n")
        output.flush(now=True)
        output.add("stderr", "two\n")
        output.close()
    assert stored(session) == []
    said = "a part of the output could not be written (DiskFull)"
    assert conclude({"outcome": "ok"}, {}, NOBODY, output.note) == {"message": said}
    with pytest.raises(Ended, match="exited with 3; a part of the output could not be written"):
        conclude({"outcome": "failed", "message": "exited with 3"}, {"why": "exit"}, NOBODY, output.note)


def test_output_is_complete_and_in_order_when_there_is_room_again(session, deployment, database):
    output = Output(deployment.id, 1, NOBODY)
    output.add("stdout", "one\n")
    with full_disk(database, "deployment_logs") as make_room:
        output.flush(now=True)
        output.add("stderr", "two\n")
        make_room()
        output.close()
    assert stored(session) == [("stdout", "one\n"), ("stderr", "two\n")]
    assert output.note == ""


def test_output_waits_for_a_database_that_is_read_only_for_now(session, deployment, database):
    """As after a failover, or when a provider puts the brake on."""
    output = Output(deployment.id, 1, NOBODY)
    output.add("stdout", "one\n")
    with database.connect("postgres") as root:
        for setting in ("SET default_transaction_read_only = on", "RESET default_transaction_read_only"):
            assert stored(session) == []
            session.rollback()
            root.execute(f"ALTER DATABASE {database.name} {setting}")
            root.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'ops_app'")
            output.flush(now=True)
    assert stored(session) == [("stdout", "one\n")]
    assert output.note == ""


def test_the_output_of_a_deployment_that_is_gone_is_dropped(session, deployment):
    session.execute(text(f"DELETE FROM {SCHEMA}.deployments"))
    session.commit()
    output = Output(deployment.id, 1, NOBODY)
    output.add("stdout", "line\n")
    output.close()
    assert stored(session) == []
