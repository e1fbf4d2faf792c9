"""Each role has what it needs and no more; an administrator makes them with one command."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

from db import roles
from db.errors import PermissionDenied
from db.roles import DEFAULTS, OWNER
from tests.conftest import SCHEMA, Database, forget_settings
from worker.servers import APP_ROLE

READ_ROLE = "ops_read"


@pytest.fixture
def administrator(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    """Settings name the server's superuser; what the test makes in the cluster goes with it."""
    monkeypatch.setenv("OPS_DATABASE_OWNER_URL", database.stack.database_url(database.name, role="postgres"))
    forget_settings()
    with database.connect("postgres") as connection:
        yield connection
        for role in (APP_ROLE, READ_ROLE):
            connection.execute(f"ALTER ROLE {role} IN DATABASE {database.name} RESET ALL")
        connection.execute(f"DROP OWNED BY {READ_ROLE}")
        connection.execute(f"DROP ROLE {READ_ROLE}")


def test_roles_are_made_once_with_their_rights_and_bounds(database: Database, administrator: psycopg.Connection):
    made = roles.make(passwords=True)
    assert list(made.new) == [READ_ROLE]
    assert roles.make().new == []
    (url,) = made.urls.values()
    assert make_url(url).username == READ_ROLE
    assert len(str(make_url(url).password)) >= 32
    (verifier,) = administrator.execute(
        "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [READ_ROLE]
    ).fetchone() or [""]
    assert verifier.startswith("SCRAM-SHA-256$")
    with database.connect(APP_ROLE) as app:
        for name, value in DEFAULTS[APP_ROLE].items():
            assert app.execute(f"SELECT current_setting('{name}')::interval = '{value}'::interval").fetchone() == (
                True,
            )


def test_the_reading_role_reads_reports_and_no_secret(administrator: psycopg.Connection):
    roles.make()
    administrator.execute(f"SET SESSION AUTHORIZATION {READ_ROLE}")
    assert administrator.execute("SELECT count(*) FROM deployments").fetchone() == (0,)
    for statement in (
        "SELECT encrypted_value FROM api_keys",
        "SELECT hashed_password FROM users",
        "SELECT args FROM jobs",
        "INSERT INTO ticks (name) VALUES ('x')",
        "SELECT ops_enqueue('x')",
        "DELETE FROM audit_logs",
    ):
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction)):
            administrator.execute(statement)
    administrator.execute("RESET SESSION AUTHORIZATION")


def test_what_another_role_has_made_is_handed_over(administrator: psycopg.Connection):
    administrator.execute("ALTER TABLE jobs OWNER TO postgres")
    administrator.execute("ALTER FUNCTION ops_audit_make_partitions OWNER TO postgres")
    roles.make()
    owners = administrator.execute(
        """SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class
        WHERE relnamespace = %(schema)s::regnamespace AND relname IN ('jobs', 'jobs_seq_seq', 'audit_logs')
        UNION SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc
        WHERE pronamespace = %(schema)s::regnamespace AND proname LIKE 'ops\\_%%'""",
        {"schema": SCHEMA},
    ).fetchall()
    assert owners == [(OWNER,)]


def test_tables_of_such_names_that_no_migration_of_ours_made_are_left_alone(administrator: psycopg.Connection):
    administrator.execute("ALTER TABLE ops_alembic_version RENAME TO elsewhere")
    administrator.execute("ALTER TABLE users OWNER TO postgres")
    roles.make()
    found = administrator.execute(
        "SELECT tableowner FROM pg_tables WHERE tablename = 'users' AND schemaname = %s", [SCHEMA]
    )
    assert found.fetchall() == [("postgres",)]


def test_who_may_not_is_told_who_may(database: Database):
    with pytest.raises(PermissionDenied) as error:
        roles.make()
    assert str(error.value).startswith("making roles needs an administrator of the server: ")
    assert error.value.hint == "ops db roles --sql | psql ..., as one"


def test_the_script_does_the_same(administrator: psycopg.Connection):
    administrator.execute(roles.script())
    known = administrator.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [READ_ROLE]).fetchone()
    assert known == (1,)


def test_the_roles_get_the_passwords_of_their_urls_and_nobody_else_does(
    database: Database, administrator: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    """As where secrets are made before the database is: in containers. Running it again sets what has changed."""
    admin = database.stack.database_url(database.name, role="postgres")

    def verifiers() -> dict[str, str | None]:
        rows = administrator.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()
        return dict(rows)

    def with_password(role: str, password: str) -> str:
        url = make_url(database.stack.database_url(database.name, role=role)).set(password=password)
        return url.set(drivername="postgresql").render_as_string(hide_password=False)

    before = verifiers()
    monkeypatch.setenv("OPS_DATABASE_ADMIN_URL", admin)
    monkeypatch.setenv("OPS_DATABASE_OWNER_URL", with_password("postgres", "not-to-be-set"))
    try:
        for password in ("first-password", "second-password"):
            monkeypatch.setenv("DATABASE_URL", with_password(APP_ROLE, password))
            forget_settings()
            assert roles.make(url_passwords=True).urls == {}
            last, now = before, verifiers()
            assert str(now[APP_ROLE]).startswith("SCRAM-SHA-256$")
            assert now[APP_ROLE] != last.get(APP_ROLE)
            assert {name: now[name] for name in before if name != APP_ROLE} == {
                name: word for name, word in before.items() if name != APP_ROLE
            }
            before = now
    finally:
        administrator.execute(f"ALTER ROLE {APP_ROLE} PASSWORD NULL")
