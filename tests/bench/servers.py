"""The servers of a bench, and more databases on them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from db.encryption import new_key
from tests.conftest import SCHEMA, Database, settings_from
from tests.e2e.platform import Platform
from tests.guardian import guarded_stack
from worker.devstack import Stack
from worker.servers import APP_ROLE, DATABASE, OWNER_ROLE, POSTGRES_SETTINGS, postgres_bin


@contextmanager
def platform() -> Iterator[Platform]:
    """Servers of their own, migrated, with statements counted."""
    POSTGRES_SETTINGS["shared_preload_libraries"] = "'pg_stat_statements'"
    with guarded_stack("ops-bench-") as stack:
        database = Database(DATABASE, stack)
        with psycopg.connect(stack.postgres.url(), autocommit=True) as owner:
            owner.execute("CREATE EXTENSION pg_stat_statements")
            owner.execute("CREATE DATABASE plain OWNER ops_app")
        environment = {
            "DATABASE_URL": database.url, "OPS_DATABASE_OWNER_URL": database.owner_url,
            "OPS_BROKER_URL": stack.broker_url, "ENCRYPTION_KEY": new_key(), "SECRET_KEY": "s" * 40,
            "PLAIN_BROKER_URL": stack.broker_url.replace("virtual_host=0", "virtual_host=1"),
            "PLAIN_DATABASE_URL": stack.database_url("plain").replace("postgresql://", "postgresql+psycopg://"),
        }  # fmt: skip
        with settings_from(environment):
            from db import migrate

            migrate.upgrade()
            made = Platform(stack, database, stack.data_dir.parent)
            try:
                yield made
            finally:
                made.end()


@contextmanager
def fresh_database(stack: Stack, name: str) -> Iterator[Database]:
    """A migrated database that the settings name meanwhile; gone afterwards."""
    made = Database(name, stack)
    with psycopg.connect(stack.postgres.url("postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} OWNER {OWNER_ROLE}")
        with psycopg.connect(stack.postgres.url(name), autocommit=True) as owner:
            owner.execute(f"ALTER SCHEMA public OWNER TO {OWNER_ROLE}")
        try:
            with settings_from({"DATABASE_URL": made.url, "OPS_DATABASE_OWNER_URL": made.owner_url}):
                from db import migrate

                migrate.upgrade()
                yield made
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def pgbench(database: Database, script: Path, *options: str) -> float:
    """Transactions per second of the runtime role, its statements prepared."""
    command = [
        str(postgres_bin() / "pgbench"), "-n", "-M", "prepared", *options, "-f", str(script),
        "-h", str(database.stack.run_dir), "-U", APP_ROLE, database.name,
    ]  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "PGOPTIONS": f"-c search_path={SCHEMA}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    assert done.returncode == 0, done.stderr
    assert found is not None, done.stdout
    return float(found[1])
