"""Transactions begin and end in one place, and a database that is away is one line."""

from __future__ import annotations

import os

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DataError, InternalError, OperationalError

from db import connection
from db.connection import get_db_session, get_engine
from db.errors import DatabaseUnavailable, InvalidInput
from db.models import User
from tests.conftest import SCHEMA, Database, settings_from


def users() -> int:
    with get_db_session() as session:
        return session.scalar(select(func.count()).select_from(User))


def add(name: str, then: Exception | None = None) -> User:
    with get_db_session(actor="test") as session:
        user = User(username=name, email=f"{name}@example.org")
        session.add(user)
        session.flush()
        if then is not None:
            raise then
    return user


def test_a_session_commits_on_success_and_rolls_back_on_error(database):
    assert add("one").username == "one"  # usable after the commit
    with pytest.raises(ZeroDivisionError):
        add("two", ZeroDivisionError())
    assert users() == 1


def test_what_is_refused_while_a_value_is_prepared_stays_one_line(database):
    with pytest.raises(InvalidInput) as error, get_db_session() as session:
        session.scalars(select(User).where(User.role == "emperor")).all()
    assert str(error.value) == "'emperor' is none of: viewer, operator, admin"


def test_a_database_that_is_not_there_is_one_line(database: Database):
    for url in (database.stack.database_url("nowhere"), "postgresql://ops:hunter2@127.0.0.1:1/ops"):
        with settings_from({"DATABASE_URL": url}):
            with pytest.raises(DatabaseUnavailable) as error:
                users()
            assert "\n" not in str(error.value)
            assert "hunter2" not in str(error.value)
            assert str(error.value).startswith("the database does not answer: ")


def ask_a_dead_session(database: Database) -> None:
    with get_db_session() as session, database.connect("postgres") as root:
        root.execute("SELECT pg_terminate_backend(%s, 5000)", [session.scalar(text("SELECT pg_backend_pid()"))])
        session.scalar(text("SELECT 1"))


def test_a_session_whose_server_ended_it_is_an_outage_and_the_next_one_works(database: Database):
    with pytest.raises(DatabaseUnavailable):
        ask_a_dead_session(database)
    with database.connect("postgres") as root:
        root.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'ops'")
    assert users() == 0  # the pool looks before it gives a connection out


def run(statement: str) -> None:
    with get_db_session() as session:
        session.execute(text("SET LOCAL statement_timeout = 1"))
        session.execute(text(statement))


def test_an_error_of_the_statement_is_no_outage(database):
    with pytest.raises(DataError):
        run("SELECT 1/0")
    with pytest.raises(OperationalError, match="statement timeout"):
        run("SELECT pg_sleep(1)")


def test_the_pool_is_as_the_settings_say(database):
    assert (get_engine().pool.size(), get_engine().pool._max_overflow) == (10, 20)
    assert get_engine().hide_parameters
    with settings_from({"OPS_DATABASE_POOL_SIZE": "2", "OPS_DATABASE_MAX_OVERFLOW": "0"}):
        assert (get_engine().pool.size(), get_engine().pool._max_overflow) == (2, 0)


def test_a_forked_child_leaves_its_parents_connections_alone(database: Database, monkeypatch):
    monkeypatch.setattr(connection, "_pool_size", None)
    with get_db_session() as session:
        mine = session.scalar(text("SELECT pg_backend_pid()"))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        connection.after_fork()
        with get_db_session() as session:
            theirs = session.scalar(text("SELECT pg_backend_pid()"))
        os.write(write, f"{theirs} {get_engine().pool.size()}".encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    theirs, size = os.read(read, 100).decode().split()
    os.close(read)
    os.close(write)
    with get_db_session() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) == mine != int(theirs)
    assert size == "2"


def test_everything_of_ours_is_named_with_its_schema(database):
    with get_db_session() as session:
        session.execute(text("SET LOCAL search_path = pg_catalog"))
        session.add(User(username="one", email="one@example.org"))
        session.flush()
        assert session.scalar(text(f"SELECT count(*) FROM {SCHEMA}.audit_logs WHERE resource_type = 'user'")) == 1


def test_a_session_for_reports_cannot_write(database):
    with get_db_session(read_only=True) as session:
        session.add(User(username="one", email="one@example.org"))
        with pytest.raises(InternalError, match="read-only transaction"):
            session.flush()
        session.rollback()
    with get_db_session() as session:  # and the connection's next user can
        session.add(User(username="one", email="one@example.org"))


def test_statements_waits_and_idle_transactions_are_bounded(database: Database):
    settings = {"DATABASE_URL": f"{database.url}&options=-c%20lock_timeout%3D3s", "OPS_DATABASE_STATEMENT_SECONDS": "7"}
    with settings_from(settings), get_db_session() as session:
        shown = {
            name: session.scalar(text(f"SHOW {name}"))
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        }
    # What the URL asks for goes before what we do.
    assert shown == {
        "statement_timeout": "7s", "lock_timeout": "3s", "idle_in_transaction_session_timeout": "1min"
    }  # fmt: skip


def test_a_host_that_is_gone_without_a_word_is_noticed_within_seconds(database):
    """Else a worker waits for an answer for hours, and says how its deployment ended when nobody counts on it."""
    with connection.get_engine().connect() as pooled:
        asked = pooled.connection.dbapi_connection.info.get_parameters()
    assert int(asked["keepalives_idle"]) + int(asked["keepalives_interval"]) * int(asked["keepalives_count"]) < 30
    assert int(asked["tcp_user_timeout"]) < 30_000
