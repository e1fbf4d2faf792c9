"""Real servers for every test: one stack per test process, one database per test, cloned from a migrated template."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings
from sqlalchemy.orm import Session

# Before anything of ours is imported: tests never read the settings of whoever runs them.
_OURS = ("OPS_DATABASE_SCHEMA", "OPS_POSTGRES_BIN", "OPS_DOCKER_SETUP", "OPS_COMPOSE_TEST", "OPS_SCREENSHOTS")
for _name in list(os.environ):
    if _name.startswith(("OPS_", "ENCRYPTION_")) and _name not in _OURS:
        del os.environ[_name]
for _name in ("DATABASE_URL", "CELERY_BROKER_URL", "REDIS_URL", "SECRET_KEY", "DEBUG", "DATABASE_DEBUG"):
    os.environ.pop(_name, None)
# A run in the background is deaf to Ctrl-C, and whatever it starts would be so too.
signal.signal(signal.SIGINT, signal.default_int_handler)
_EMPTY = tempfile.mkdtemp(prefix="ops-test-nothing-")
atexit.register(shutil.rmtree, _EMPTY, ignore_errors=True)  # benches have no end of a session
os.environ["OPS_DATA_DIR"] = _EMPTY

from db import connection, encryption  # noqa: E402
from db.settings import get_settings  # noqa: E402
from tests.databases import clone  # noqa: E402
from tests.foreign import make_foreign_tables  # noqa: E402
from tests.guardian import guarded_stack  # noqa: E402
from worker.devstack import Stack  # noqa: E402
from worker.servers import APP_ROLE, OWNER_ROLE  # noqa: E402

hypothesis_settings.register_profile("ops", deadline=None)  # a busy machine is no failure
hypothesis_settings.load_profile("ops")

TEMPLATE = "ops_template"
SCHEMA = os.environ.get("OPS_DATABASE_SCHEMA", "public")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses servers is marked so, by what it asks for; what is slow gets the time that it takes under load."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.servers)


def pytest_sessionfinish() -> None:
    shutil.rmtree(_EMPTY, ignore_errors=True)


@dataclass(frozen=True)
class Database:
    """One test's own database, as the roles see it."""

    name: str
    stack: Stack

    @property
    def url(self) -> str:
        """As the platform sees it: a role without the right to change tables or the audit trail."""
        return self.stack.database_url(self.name, role=APP_ROLE)

    @property
    def owner_url(self) -> str:
        return self.stack.database_url(self.name, role=OWNER_ROLE)

    @contextmanager
    def connect(self, role: str = APP_ROLE) -> Iterator[psycopg.Connection]:
        """A plain autocommit connection whose search path is our schema."""
        url = self.stack.database_url(self.name, role=role)
        with psycopg.connect(url, autocommit=True, options=f"-c search_path={SCHEMA}") as plain:
            yield plain


@contextmanager
def settings_from(environment: dict[str, str]) -> Iterator[None]:
    """Run with these variables, and with nothing remembered of others before and after."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    forget_settings()
    try:
        yield
    finally:
        forget_settings()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def forget_settings() -> None:
    connection.dispose()
    get_settings.cache_clear()
    encryption.reset_keyring()


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """PostgreSQL and Valkey of this test process; stopped and removed at its end."""
    with guarded_stack("ops-test-") as servers:
        yield servers


def make_template(servers: Stack) -> str:
    """A migrated database that every test's own is cloned from."""
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {TEMPLATE} OWNER {OWNER_ROLE}")
    with psycopg.connect(servers.postgres.url(TEMPLATE), autocommit=True) as database:
        database.execute(f"ALTER SCHEMA public OWNER TO {OWNER_ROLE}")
        if SCHEMA != "public":
            make_foreign_tables(database)
            database.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {OWNER_ROLE}")
    made = Database(TEMPLATE, servers)
    with settings_from({"DATABASE_URL": made.url, "OPS_DATABASE_OWNER_URL": made.owner_url}):
        from db import migrate

        migrate.upgrade()
    return TEMPLATE


@contextmanager
def fresh_database(servers: Stack, template: str) -> Iterator[Database]:
    """A database as the template is; settings and environment point at it meanwhile."""
    with clone(servers, template) as name:
        made = Database(name, servers)
        environment = {
            "DATABASE_URL": made.url,
            "OPS_DATABASE_OWNER_URL": made.owner_url,
            "OPS_BROKER_URL": servers.broker_url,
            "ENCRYPTION_KEY": encryption.new_key(),
            "SECRET_KEY": "s" * 40,
        }
        with settings_from(environment):
            yield made


@pytest.fixture(scope="session")
def template(stack: Stack) -> str:
    """The template of the shared stack."""
    return make_template(stack)


@pytest.fixture
def database(stack: Stack, template: str) -> Iterator[Database]:
    """A fresh database; settings and environment point at it while the test runs."""
    with fresh_database(stack, template) as made:
        yield made


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """A session of the runtime role that acts as `system`; rolled back at the end unless the test commits."""
    made = Session(connection.get_engine(), expire_on_commit=False)
    connection.audit_context(made)
    with made:
        yield made


@pytest.fixture
def sql(database: Database) -> Iterator[Callable[..., list[tuple]]]:
    """Run one statement as the runtime role, as psql would; answers the rows."""
    with database.connect() as plain:

        def run(statement: str, *arguments: object) -> list[tuple]:
            cursor = plain.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []

        yield run
