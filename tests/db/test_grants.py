"""Migrations that were written beside each other each name their tables to the function that gives rights."""

from __future__ import annotations

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, pool, text

from migrations import sql
from tests.conftest import SCHEMA, Database
from worker.servers import APP_ROLE, OWNER_ROLE


def body(database: Database) -> str:
    with database.connect(OWNER_ROLE) as owner:
        return owner.execute("SELECT pg_get_functiondef('ops_grant(name, text)'::regprocedure)").fetchone()[0]


def change(database: Database, *calls: dict) -> None:
    engine = create_engine(
        database.owner_url.replace("postgresql://", "postgresql+psycopg://"), poolclass=pool.NullPool
    )
    with engine.begin() as connection:
        connection.execute(text(f"SET search_path = {SCHEMA}, pg_temp"))
        with Operations.context(MigrationContext.configure(connection)):
            for call in calls:
                sql.grant(*call.pop("tables"), **call)


def test_two_migrations_add_tables_and_take_them_away_again(database: Database):
    before = body(database)
    first, second = {"tables": ("birds",), "hidden": ("nest",)}, {"tables": ("fish", "frogs"), "hidden": ("nest",)}
    change(database, dict(first), dict(second))
    with database.connect("postgres") as root:
        root.execute("CREATE ROLE reader")
        try:
            with database.connect(OWNER_ROLE) as owner:
                owner.execute("CREATE TABLE birds (id int, nest text); CREATE TABLE frogs (id int)")
                owner.execute("SELECT ops_grant(%s, 'app'), ops_grant('reader', 'read')", [APP_ROLE])
            with database.connect() as app:
                app.execute("INSERT INTO birds VALUES (1); INSERT INTO frogs VALUES (1)")
            can = "SELECT has_column_privilege('reader', 'birds', %s, 'SELECT')"
            assert [root.execute(can, [name]).fetchone() for name in ("id", "nest")] == [(True,), (False,)]
        finally:
            root.execute("DROP OWNED BY reader")
            root.execute("DROP ROLE reader")
    change(database, second | {"undo": True}, first | {"undo": True})
    assert body(database) == before


def test_what_was_not_added_cannot_be_taken_away(database: Database):
    with pytest.raises(Exception, match="not as it was made") as refused:
        change(database, {"tables": ("ghosts",), "undo": True})
    assert isinstance(getattr(refused.value, "orig", None), psycopg.errors.RaiseException)
