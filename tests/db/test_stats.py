"""What is watched: connections, queries, encryption, the trail's growth, failed logins."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db import aio, encryption, keyring
from db.connection import get_db_session, get_engine, pool_stats
from db.errors import DecryptionError, Throttled
from db.repositories import StatsRepository
from db.service import DatabaseService
from db.services import logins
from db.services.logins import PAIR
from tests.conftest import APP_ROLE, Database


def test_a_pool_says_how_many_connections_are_in_use_and_how_many_there_may_be(database):
    assert pool_stats().limit == 30
    with get_db_session() as session:
        session.execute(text("SELECT 1"))
        assert (pool_stats().in_use, pool_stats().idle) == (1, 0)
    assert (pool_stats().in_use, pool_stats().idle) == (0, 1)

    async def other() -> None:
        async with aio.get_db_session() as session:
            await session.execute(text("SELECT 1"))
            assert pool_stats(aio.get_engine().sync_engine).in_use == 1
        await aio.dispose()

    asyncio.run(other())
    assert pool_stats(get_engine()).in_use == 0


def test_each_value_that_is_sealed_or_opened_is_counted_with_its_time(database):
    before = {name: (t.count, t.failures, t.seconds) for name, t in timings().items()}
    stored = encryption.encrypt_field("value")
    encryption.decrypt_field(stored)
    encryption.decrypt_field(stored)
    with pytest.raises(DecryptionError):
        encryption.decrypt_field(stored, "another field")
    after = {name: (t.count, t.failures, t.seconds) for name, t in timings().items()}
    grown = {name: [a - b for a, b in zip(after[name], before[name], strict=True)] for name in after}
    assert (grown["sealed"][:2], grown["opened"][:2]) == ([1, 0], [3, 1])
    assert grown["sealed"][2] > 0
    assert grown["opened"][2] > 0


def timings() -> dict[str, keyring.Timing]:
    return {"sealed": keyring.sealed, "opened": keyring.opened}


def test_the_growth_of_the_trail_is_seen(session: Session):
    stats = StatsRepository(session)
    before = stats.audit_growth()
    for n in range(20):
        DatabaseService(session).register_application(f"a{n}", ["x" * 1000])
    after = stats.audit_growth()
    assert after.lately - before.lately == 20
    assert after.bytes >= before.bytes > 0
    session.commit()
    assert stats.audit_growth(timedelta(0)).lately == 0


def test_failed_logins_are_counted_with_how_many_names_and_addresses(session: Session, monkeypatch):
    monkeypatch.setattr(logins.passwords, "check", lambda *_: (False, None))
    door = DatabaseService(session)
    for n in range(PAIR.at_once):
        door.authenticate("eve", "wrong", ip_address="10.0.0.1")
        door.authenticate(f"user{n}", "wrong", ip_address=f"10.0.1.{n}")
    with pytest.raises(Throttled):
        door.authenticate("eve", "wrong", ip_address="10.0.0.1")
    found = StatsRepository(session).failed_logins()
    assert (found.failed, found.usernames, found.addresses, found.throttled) == (20, 11, 11, 1)
    assert StatsRepository(session).failed_logins(timedelta(0)).failed == 0


def test_slow_queries_are_known_only_where_the_server_keeps_statistics(session: Session, database: Database):
    stats = StatsRepository(session)
    assert stats.slowest_queries() is None
    session.rollback()
    with psycopg.connect(database.stack.postgres.url(database.name), autocommit=True) as root:
        try:
            root.execute("CREATE EXTENSION pg_stat_statements")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this PostgreSQL was built without pg_stat_statements")
        assert stats.slowest_queries() is None  # there, but not loaded by the server
        session.rollback()
        # As it reads where the server loads it.
        root.execute("DROP EXTENSION pg_stat_statements; CREATE SCHEMA monitor")
        root.execute(
            """CREATE VIEW monitor.pg_stat_statements AS SELECT 'SELECT $1'::text AS query, 7::bigint AS calls,
            1.5::float AS mean_exec_time, 10.5::float AS total_exec_time, 7::bigint AS rows, d.oid AS dbid
            FROM pg_database d"""
        )
        root.execute(
            f"GRANT USAGE ON SCHEMA monitor TO {APP_ROLE}; GRANT SELECT ON monitor.pg_stat_statements TO {APP_ROLE}"
        )
        root.execute(
            "INSERT INTO pg_extension SELECT 99999, 'pg_stat_statements', 10, 'monitor'::regnamespace, false, '1.10'"
        )
    (query,) = stats.slowest_queries()
    assert (query.text, query.calls, query.mean_ms) == ("SELECT $1", 7, 1.5)
