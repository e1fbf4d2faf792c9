"""A process that could not keep its promises must not start, and says in one line why."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

from db import preflight
from db.encryption import MasterKey, get_keyring, new_key
from db.errors import DatabaseUnavailable, EncryptionError, OpsError, Refused, SchemaOutOfDate, SettingsError
from tests.conftest import SCHEMA, Database, settings_from
from worker.servers import OWNER_ROLE


def refused(kind: type[OpsError]) -> str:
    with pytest.raises(kind) as error:
        preflight.check_start(patience=0)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


@contextmanager
def keys(**environment: str) -> Iterator[list[str]]:
    """Run as a process with these encryption keys and no others."""
    with settings_from({"ENCRYPTION_KEY": ""} | environment):
        yield get_keyring().ids


def known_keys(sql: Callable[..., list[tuple]]) -> set[str]:
    return {key for (key,) in sql("SELECT id FROM encryption_keys")}


def test_a_migrated_durable_database_with_its_key_passes(database, sql):
    preflight.check_start(patience=0)
    preflight.check_start(patience=0)
    assert known_keys(sql) == set(get_keyring().ids)
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'encryption_key.created'") == [(1,)]


def test_an_empty_database_is_told_to_migrate(database: Database):
    with settings_from({"DATABASE_URL": database.stack.database_url("postgres", role="postgres")}):
        assert refused(SchemaOutOfDate) == f"the database has no tables of ours in schema {SCHEMA}; run: ops db upgrade"


def test_a_database_whose_tables_were_removed_is_told_to_migrate(database: Database):
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("DELETE FROM ops_alembic_version")
    assert "run: ops db upgrade" in refused(SchemaOutOfDate)


def test_a_database_that_lacks_a_migration_is_told_to_migrate(database: Database, monkeypatch):
    newest = preflight.head_revision()
    monkeypatch.setattr(preflight, "_revisions", lambda: {newest: None, "next": newest})
    message = refused(SchemaOutOfDate)
    assert f"at migration {newest}, this release needs next" in message
    assert "ops db upgrade" in message


def test_a_release_starts_on_the_tables_of_a_later_one_until_they_lack_what_it_uses(database: Database):
    """As a worker does that dies while a later release is rolled out."""
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("UPDATE ops_alembic_version SET version_num = 'later'")
        preflight.check_start(patience=0)
        says = owner.execute("SELECT pg_get_functiondef('ops_runs_from'::regproc)").fetchone()[0]
        owner.execute(re.sub(r"'\d+_\d+'", "'later'", says))
        message = refused(SchemaOutOfDate)
        assert "later" in message
        assert "ops db upgrade" not in message
        owner.execute("DROP FUNCTION ops_runs_from()")  # no migrations of ours, or of before it was said
        assert refused(SchemaOutOfDate) == message


def test_a_role_without_rights_is_told_so(database: Database):
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("REVOKE SELECT ON ops_alembic_version FROM ops_app")
    assert "no rights" in refused(Refused)


def test_a_database_that_is_not_there_is_one_line(database: Database):
    with settings_from({"DATABASE_URL": database.stack.database_url("nowhere")}):
        assert "does not answer" in refused(DatabaseUnavailable)


def test_a_server_that_may_forget_a_commit_is_refused(database: Database):
    with psycopg.connect(database.stack.postgres.url("postgres"), autocommit=True) as server:
        server.execute(f"ALTER DATABASE {database.name} SET synchronous_commit = off")
        assert "synchronous_commit = off" in refused(Refused)
        server.execute(f"ALTER DATABASE {database.name} SET synchronous_commit = local")
        preflight.check_start(patience=0)


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_may_lose_what_it_has_written_is_refused(database: Database, setting):
    with psycopg.connect(database.stack.postgres.url("postgres"), autocommit=True) as server:
        reload_with(server, f"ALTER SYSTEM SET {setting} = off", setting, "off")
        try:
            assert f"{setting} = off" in refused(Refused)
        finally:
            reload_with(server, f"ALTER SYSTEM RESET {setting}", setting, "on")
    preflight.check_start(patience=0)


def reload_with(server: psycopg.Connection, statement: str, setting: str, value: str) -> None:
    """The server takes a reload in when it comes to it, and tells nobody: ask new sessions until they see it."""
    server.execute(statement)
    server.execute("SELECT pg_reload_conf()")
    seen = ""
    while seen != value:
        with psycopg.connect(server.info.dsn) as fresh:
            (seen,) = fresh.execute(f"SHOW {setting}").fetchone()


def test_another_key_under_a_known_id_is_refused(database, sql):
    with keys(OPS_ENCRYPTION_KEYS=f"2026:{new_key()}"):
        preflight.check_start(patience=0)
    with keys(OPS_ENCRYPTION_KEYS=f"2026:{new_key()}"):
        assert "2026 is not the one this database was written with" in refused(EncryptionError)
    assert known_keys(sql) == {"2026"}


def test_a_wrong_key_is_refused_and_leaves_nothing(database, sql):
    preflight.check_start(patience=0)
    before = known_keys(sql)
    with keys(ENCRYPTION_KEY=new_key()) as ids:
        message = refused(EncryptionError)
    assert known_keys(sql) == before
    assert all(key in message for key in [*before, *ids])
    assert "OPS_ENCRYPTION_KEYS" in message


def test_a_new_key_beside_the_old_one_is_accepted_and_remembered(database, sql):
    old, new = new_key(), new_key()
    with keys(ENCRYPTION_KEY=old) as (old_id,):
        preflight.check_start(patience=0)
    with keys(ENCRYPTION_KEY=new, OPS_ENCRYPTION_KEYS=f"{old_id}:{old}") as (new_id, _):
        preflight.check_start(patience=0)
    assert known_keys(sql) == {old_id, new_id}
    with keys(ENCRYPTION_KEY=new):
        preflight.check_start(patience=0)
    with keys(OPS_ENCRYPTION_KEYS=f"{new_id}:{old}"):
        assert f"{new_id} is not the one" in refused(EncryptionError)


def test_the_check_value_opens_no_field(database, sql):
    preflight.check_start(patience=0)
    ((stored,),) = sql("SELECT check_value FROM encryption_keys")
    (key,) = get_keyring()
    assert isinstance(key, MasterKey)
    assert key.fernet(preflight.CHECK_LABEL).decrypt(stored.encode()).decode() == preflight.CHECK_TEXT


def test_no_key_at_all_passes(database, sql):
    preflight.check_start(patience=0)
    before = known_keys(sql)
    with keys() as ids:
        assert ids == []
        preflight.check_start(patience=0)
    assert known_keys(sql) == before


def test_a_malformed_key_is_refused_before_the_database_is_touched(database, sql):
    with settings_from({"ENCRYPTION_KEY": "nonsense"}):
        assert "ENCRYPTION_KEY" in refused(SettingsError)
    assert known_keys(sql) == set()


def test_many_processes_may_start_at_once(database, sql):
    together = threading.Barrier(4)

    def start(_: int) -> None:
        together.wait()
        preflight.check_start(patience=0)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(start, range(4)))
    assert known_keys(sql) == set(get_keyring().ids)
