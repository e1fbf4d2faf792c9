"""Migrations: there and back again, beside other people's tables, by one at a time, and each failure is one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

import migrations
from db import migrate
from db.errors import Conflict, DatabaseUnavailable, InvalidInput, OpsError, PermissionDenied
from db.preflight import head_revision
from tests.conftest import SCHEMA, Database, settings_from
from tests.foreign import make_foreign_tables
from worker.devstack import Stack
from worker.servers import APP_ROLE, OWNER_ROLE, postgres_bin

ROOT = Path(migrations.__file__).parent.parent
UPGRADE = "from db import migrate; migrate.upgrade()"


@pytest.fixture
def empty(stack: Stack) -> Iterator[Database]:
    """A database without anything of ours; settings point at it while the test runs."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(stack.postgres.url("postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} OWNER {OWNER_ROLE}")
        made = Database(name, stack)
        with made.connect("postgres") as root:
            root.execute(f"ALTER SCHEMA public OWNER TO {OWNER_ROLE}")
        with settings_from({"DATABASE_URL": made.url, "OPS_DATABASE_OWNER_URL": made.owner_url}):
            yield made
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def schema_of(database: Database, *only: str) -> str:
    """Everything in a database, or in some schemas, but its rows."""
    url = database.stack.database_url(database.name, role="postgres")
    done = subprocess.run(
        [postgres_bin() / "pg_dump", "--schema-only", *(f"--schema={name}" for name in only), url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.sub(r"^\\(un)?restrict .*$", "", done.stdout, flags=re.MULTILINE)


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """Another process of ours."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, text=True, stderr=subprocess.PIPE
    )


def done(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


def refused(kind: type[OpsError], work, *arguments: object) -> OpsError:
    with pytest.raises(kind) as error:
        work(*arguments)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return error.value


def test_up_and_down_and_up_is_the_same_again(empty: Database):
    migrate.upgrade()
    first = schema_of(empty)
    migrate.downgrade("base")
    below = schema_of(empty)
    migrate.upgrade()
    assert schema_of(empty) == first
    assert re.findall(r"^CREATE (?:TABLE|FUNCTION|SEQUENCE|TRIGGER|INDEX) .*?(\w+)[ (]*$", below, re.MULTILINE) == [
        "ops_alembic_version"
    ]
    migrate.upgrade()
    assert schema_of(empty) == first


def test_the_models_and_the_tables_agree_and_a_difference_is_one_line(database: Database):
    assert migrate.drift() is None
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("ALTER TABLE users ADD COLUMN nickname text")
    found = migrate.drift()
    assert found is not None
    assert "nickname" in found
    assert "\n" not in found


def test_the_statements_of_an_offline_upgrade_make_the_same_database(empty: Database, database: Database):
    # By psql, statement by statement: an index that is built concurrently stands outside of any transaction.
    subprocess.run(
        [postgres_bin() / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, empty.owner_url],
        input=migrate.offline_sql(), text=True, check=True,
    )  # fmt: skip
    with empty.connect(OWNER_ROLE) as owner:
        owner.execute(f"SELECT ops_grant('{APP_ROLE}', 'app')")
    assert migrate.drift() is None
    assert schema_of(empty, SCHEMA) == schema_of(database, SCHEMA)


def test_an_applications_own_tables_of_the_same_names_stay_as_they_are(empty: Database):
    with empty.connect("postgres") as root:
        make_foreign_tables(root)
        tables = ("users", "alembic_version", "jobs")
        before = [root.execute(f"SELECT to_jsonb(t) FROM public.{name} t").fetchall() for name in tables]
        columns = "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public'"
        wide = root.execute(columns).fetchall()
        done(python(UPGRADE, OPS_DATABASE_SCHEMA="ops"))
        assert root.execute("SELECT version_num FROM ops.ops_alembic_version").fetchall() == [(head_revision(),)]
        assert root.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'ops'").fetchall()[0][0] > 10
        done(python("from db import migrate; assert migrate.drift() is None", OPS_DATABASE_SCHEMA="ops"))
        done(python("from db import migrate; migrate.downgrade('base')", OPS_DATABASE_SCHEMA="ops"))
        assert [root.execute(f"SELECT to_jsonb(t) FROM public.{name} t").fetchall() for name in tables] == before
        assert root.execute(columns).fetchall() == wide


def test_a_schema_that_exists_needs_no_right_to_make_schemas(empty: Database):
    with empty.connect("postgres") as root:
        root.execute(f"ALTER DATABASE {empty.name} OWNER TO postgres")
        root.execute(f"CREATE SCHEMA ours AUTHORIZATION {OWNER_ROLE}")
    done(python(UPGRADE, OPS_DATABASE_SCHEMA="ours"))


def test_of_two_upgrades_at_once_one_waits_for_the_other(empty: Database):
    with empty.connect("postgres") as root, empty.connect(OWNER_ROLE) as first:
        migrate.take_turn(first)
        both = [python(UPGRADE), python(UPGRADE)]
        asking: set[int] = set()
        while len(asking) < 2:
            assert all(each.poll() is None for each in both)
            rows = root.execute(
                "SELECT pid, pg_sleep(0.02) FROM pg_stat_activity WHERE query LIKE %s AND datname = %s AND pid <> %s",
                ["COMMIT", empty.name, first.info.backend_pid],
            )
            asking |= {pid for pid, _ in rows}
    for each in both:
        done(each)
    assert migrate.drift() is None


def test_a_migration_does_not_wait_long_for_a_lock_and_then_changes_nothing(database: Database):
    migrate.downgrade(migrate.history()[-1].revision)  # those before the one that fails stay undone
    before = schema_of(database)
    with database.connect() as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM users")
        error = refused(Conflict, migrate.downgrade, "base")
    assert "lock timeout" in str(error)
    assert schema_of(database) == before


def test_plain_alembic_gives_a_migration_its_date(tmp_path):
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    versions = tmp_path / "migrations" / "versions"
    before = set(versions.glob("*.py"))
    subprocess.run(
        [sys.executable, "-m", "alembic", "revision", "-m", "Add a thing"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip
    (made,) = set(versions.glob("*.py")) - before
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{4}_add_a_thing\.py", made.name)
    assert f"down_revision = '{head_revision()}'" in made.read_text()


def test_plain_alembic_fails_in_one_line(empty: Database):
    with empty.connect(OWNER_ROLE) as owner:
        owner.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        owner.execute("CREATE TABLE users (id int)")
    process = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode != 0
    assert "Traceback" not in process.stderr
    assert 'relation "users" already exists' in process.stderr


def test_a_name_that_is_taken_is_one_line_that_says_the_way_out_and_changes_nothing(empty: Database):
    with empty.connect(OWNER_ROLE) as owner:
        owner.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        owner.execute("CREATE TABLE users (id int)")
    before = schema_of(empty)
    error = refused(Conflict, migrate.upgrade)
    assert str(error) == 'the migration failed and changed nothing: relation "users" already exists'
    assert "OPS_DATABASE_SCHEMA" in str(error.hint)
    assert schema_of(empty) == before


def test_a_missing_right_of_the_owner_is_one_line_that_says_what_to_set(empty: Database, database: Database):
    for where, work, argument in ((empty, migrate.upgrade, "head"), (database, migrate.downgrade, "base")):
        before = schema_of(where)
        with settings_from({"DATABASE_URL": where.url, "OPS_DATABASE_OWNER_URL": where.url}):
            error = refused(PermissionDenied, work, argument)
        assert str(error).startswith("migrating needs the role that owns the tables: ")
        assert error.hint == "set OPS_DATABASE_OWNER_URL"
        assert schema_of(where) == before


def test_other_failures_are_one_line(database: Database):
    refused(InvalidInput, migrate.upgrade, "nonsense")
    refused(InvalidInput, migrate.downgrade, "-700")
    with settings_from({"OPS_DATABASE_OWNER_URL": database.stack.database_url("nowhere", role=OWNER_ROLE)}):
        refused(DatabaseUnavailable, migrate.upgrade)


@contextmanager
def role_of(database: Database, kind: str | None) -> Iterator[psycopg.Connection]:
    """A connection that acts as a role with this kind of rights and no others."""
    with database.connect("postgres") as root:
        root.execute("CREATE ROLE somebody")
        try:
            if kind is not None:
                with database.connect(OWNER_ROLE) as owner:
                    owner.execute("SELECT ops_grant('somebody', %s)", [kind])
            root.execute("SET ROLE somebody")
            yield root
            root.execute("RESET ROLE")
        finally:
            root.execute("RESET ROLE")
            root.execute("DROP OWNED BY somebody")
            root.execute("DROP ROLE somebody")


def allowed(role: psycopg.Connection) -> tuple[dict[str, set[str]], set[str]]:
    """What a role may do: rights by table of ours, partitions included, and the functions it may call."""
    tables = role.execute(
        f"""SELECT c.relname, array_agg(p) FROM pg_class c,
        unnest('{{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}}'::text[]) p
        WHERE c.relnamespace = '{SCHEMA}'::regnamespace AND c.relkind IN ('r', 'p')
          AND has_table_privilege(c.oid, p) GROUP BY 1"""
    ).fetchall()
    functions = role.execute(
        f"""SELECT proname FROM pg_proc WHERE pronamespace = '{SCHEMA}'::regnamespace AND proname LIKE 'ops\\_%'
        AND has_function_privilege(oid, 'EXECUTE')"""
    ).fetchall()
    return {name: set(rights) for name, rights in tables}, {name for (name,) in functions}


def test_nothing_of_ours_is_for_everybody(database: Database):
    with role_of(database, None) as role:
        assert allowed(role) == ({}, set())


def test_the_app_role_runs_the_platform_and_owns_nothing_of_it(database: Database):
    with role_of(database, "app") as role:
        tables, functions = allowed(role)
        triggers = role.execute(f"""SELECT proname FROM pg_proc WHERE pronamespace = '{SCHEMA}'::regnamespace
            AND prorettype = 'trigger'::regtype""").fetchall()
        assert not role.execute(f"SELECT has_schema_privilege('{SCHEMA}', 'CREATE')").fetchone()[0]
    everything = {"SELECT", "INSERT", "UPDATE", "DELETE"}
    reads = {"audit_logs", "ledger_state", "ops_alembic_version"}
    assert {name for name, rights in tables.items() if rights == {"SELECT"}} == reads
    assert tables.pop("audit_seals") == {"SELECT", "INSERT"}
    assert all(rights == everything for name, rights in tables.items() if name not in reads)
    assert {"jobs", "users", "api_keys", "deployments", "deployment_logs"} <= set(tables)
    assert {"ops_enqueue", "ops_claim", "ops_finish", "ops_audit", "ops_audit_drop_partitions"} <= functions
    assert not functions & {"ops_grant", "ops_audit_watch", "ops_audit_unwatch", *(name for (name,) in triggers)}


HIDDEN = [
    ("users", "hashed_password"), ("api_keys", "encrypted_value"), ("infrastructure", "encrypted_settings"),
    ("infrastructure", "settings"), ("applications", "command"), ("applications", "configuration"),
    ("applications", "health_check_url"), ("jobs", "args"), ("jobs", "kwargs"), ("jobs", "lease_token"),
    ("encryption_keys", "check_value"), ("deployments", "frozen"),
]  # fmt: skip


def test_the_read_role_sees_reports_and_nothing_that_is_secret(database: Database):
    with role_of(database, "read") as role:
        assert allowed(role) == ({}, set())  # by column only
        for statement in (
            "SELECT username, email, role FROM users",
            "SELECT service_name, key_name FROM api_keys",
            "SELECT version, status, error_message FROM deployments",
            "SELECT content FROM deployment_logs",
            "SELECT id, state, outcome, error FROM jobs",
            "SELECT * FROM audit_logs",
        ):
            role.execute(statement)
        for table, column in HIDDEN:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(f"SELECT {column} FROM {table}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            role.execute("UPDATE users SET role = 'admin'")


def test_the_enqueue_role_may_enqueue_and_no_more(database: Database, sql):
    with role_of(database, "enqueue") as role:
        first, again = (
            role.execute("SELECT id, created FROM ops_enqueue('t', p_unique_key => 'k')").fetchone() for _ in range(2)
        )
        assert (first[1], again) == (True, (first[0], False))
        assert allowed(role) == ({}, {"ops_enqueue", "ops_audit_context"})
        for statement in (
            "SELECT args FROM jobs",
            "SELECT * FROM jobs",
            "UPDATE jobs SET priority = 0",
            "DELETE FROM jobs",
            "INSERT INTO jobs (id, task, queue, state) VALUES (gen_random_uuid(), 't', 'q', 'running')",
            "SELECT username FROM users",
            "SELECT action FROM audit_logs",
            f"SELECT ops_cancel('{first[0]}')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(statement)
    assert sql("SELECT action, db_user, actor FROM audit_logs WHERE resource_type = 'job'") == [
        ("job.enqueued", "postgres", "postgres")
    ]


def test_an_unknown_kind_of_role_is_refused(database: Database):
    with pytest.raises(psycopg.errors.RaiseException, match="known are: app, read, enqueue"), role_of(database, "root"):
        pass
