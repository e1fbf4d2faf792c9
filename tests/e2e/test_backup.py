"""What the documentation says of backups is done: a dump restored elsewhere, a server recovered to a point in time."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from db import migrate, roles
from db.connection import get_db_session
from db.encryption import new_key
from db.models import APIKey
from db.repositories import APIKeyRepository
from db.repositories.stats import StatsRepository
from db.service import DatabaseService
from db.services import pausing
from tests.conftest import SCHEMA, Database, fresh_database, make_template, settings_from
from tests.e2e.process import until
from worker.devstack import Stack
from worker.servers import OWNER_ROLE, postgres_bin

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
SCRIPTS = Path(__file__).parent.parent.parent / "docs" / "examples" / "backup"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Stack]:
    """Another server."""
    with tempfile.TemporaryDirectory(prefix="ops-backup-") as folder:
        servers = Stack(Path(folder) / "stack")
        try:
            servers.start()
            yield servers
        finally:
            servers.delete()


def run(script: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [str(SCRIPTS / script), *map(str, arguments)],
        env={"PATH": f"{postgres_bin()}:{os.environ['PATH']}"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def deploy_something() -> tuple[int, int]:
    """A deployment that waits, and a secret."""
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("ann", "ann@example.org", role="admin")
        key = service.store_api_key(user.id, "aws", "token", "AKIA-1234567890")
        app = service.register_application("web", ["true"])
        infra = service.register_infrastructure("here", user.id)
        return service.create_deployment(user.id, app.id, infra.id, "v1").id, key.id


def is_up(servers: Stack) -> bool:
    try:
        servers.postgres.start()
    except psycopg.OperationalError:  # while it recovers it lets nobody in
        return False
    return True


def paused() -> str | None:
    with get_db_session() as session:
        return session.connection().exec_driver_sql(f"SELECT {SCHEMA}.ops_paused()").scalar()


def test_a_dump_is_restored_elsewhere_and_starts_nothing_there(database: Database, elsewhere: Stack, tmp_path: Path):
    deployment, key = deploy_something()
    stamp = tmp_path / "stamp"
    for _ in range(3):
        dump = run(
            "backup.sh", tmp_path / "dumps", 2, OPS_DATABASE_OWNER_URL=database.owner_url, OPS_BACKUP_STAMP=str(stamp),
            OPS_DATABASE_SCHEMA=SCHEMA,
        ).strip()  # fmt: skip
    kept = sorted((tmp_path / "dumps").iterdir())
    assert len(kept) <= 2
    assert Path(dump) in kept
    assert Path(dump).stat().st_mode & 0o077 == 0
    assert stamp.exists()
    assert os.environ["ENCRYPTION_KEY"].encode() not in Path(dump).read_bytes()

    restored = Database("restored", elsewhere)
    with psycopg.connect(elsewhere.postgres.url("postgres"), autocommit=True) as server:
        server.execute(f"CREATE DATABASE restored OWNER {OWNER_ROLE}")
    root = elsewhere.database_url("restored", role="postgres")
    run("restore.sh", dump, OPS_DATABASE_OWNER_URL=root)
    with settings_from({"DATABASE_URL": restored.url, "OPS_DATABASE_OWNER_URL": root}):
        roles.make()
        migrate.upgrade()
        assert paused() == "restored"
        with get_db_session() as session:
            assert APIKeyRepository(session).require(key).encrypted_value == "AKIA-1234567890"
            assert StatsRepository(session).ledger_state().reason == "this database was restored into another server"
            pausing.resume(session, queued="cancel")
        with restored.connect() as app:
            rows = app.execute("SELECT status FROM deployments WHERE id = %s", [deployment]).fetchall()
        assert rows == [("cancelled",)]
    assert paused() is None, "where the backup came from, everything goes on"


def test_a_lost_key_loses_the_secrets_and_nothing_else(database: Database):
    _, key = deploy_something()
    with settings_from({"ENCRYPTION_KEY": new_key()}), get_db_session() as session:
        names = [(row.id, row.service_name) for row in session.query(APIKey.id, APIKey.service_name)]
    assert names == [(key, "aws")]


def test_a_server_that_was_recovered_to_a_point_in_time_starts_nothing(elsewhere: Stack):
    template = make_template(elsewhere)
    with fresh_database(elsewhere, template):
        deploy_something()
        assert paused() is None
        elsewhere.postgres.stop()
        with (elsewhere.postgres.data / "postgresql.auto.conf").open("a") as file:
            file.write("restore_command = 'false'\nhot_standby = off\n")
        signal = elsewhere.postgres.data / "recovery.signal"
        signal.touch()
        os.chown(signal, elsewhere.postgres.user.pw_uid, -1)
        until(lambda: is_up(elsewhere), "the recovery has ended")
        assert not signal.exists()
        assert paused() == "restored"
        with get_db_session() as session:
            pausing.resume(session, queued="run")
        assert paused() is None
        elsewhere.postgres.stop()
        elsewhere.postgres.start()
        assert paused() is None, "the next start is an ordinary one"
