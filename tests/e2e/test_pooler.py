"""Everything works through PgBouncer in transaction mode, where one server connection serves many clients."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psycopg
import pytest

from db.connection import get_db_session, open_ledger
from db.models import AuditLog
from db.repositories import AuditLogRepository
from db.service import DatabaseService
from tests.conftest import Database, settings_from
from tests.e2e.conftest import running_platform
from tests.e2e.platform import Platform
from tests.e2e.process import until

PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not Path(PROGRAM).exists(), reason="PgBouncer is not installed (Debian's package: pgbouncer)"),
]
SERVER_CONNECTIONS = 3


@pytest.fixture
def pooled(database: Database) -> Iterator[Database]:
    """The test's database behind PgBouncer, which has three connections to it."""
    folder = Path(tempfile.mkdtemp(prefix="ops-pooler-"))
    # It does not run as root, and the server lets in whoever it runs as itself.
    user = database.stack.postgres.user.pw_name if os.geteuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    (folder / "users.txt").write_text('"ops_app" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
        {database.name} = host={database.stack.run_dir} user=ops_app
        [pgbouncer]
        listen_addr =
        listen_port = 6432
        unix_socket_dir = {folder}
        pidfile = {folder}/pid
        auth_type = trust
        auth_file = {folder}/users.txt
        pool_mode = transaction
        default_pool_size = {SERVER_CONNECTIONS}
        max_client_conn = 100
        """.replace("        ", "")
    )
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    command = [PROGRAM, *(["-u", user] if os.geteuid() == 0 else []), str(folder / "pgbouncer.ini")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    url = f"postgresql://ops_app@/{database.name}?host={folder}&port=6432"
    try:
        until(lambda: answers(url, server), "PgBouncer answers")
        with settings_from({"DATABASE_URL": url, "OPS_DATABASE_POOLER": "transaction"}):
            yield database
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "PgBouncer has ended"
    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


def test_nobodys_audit_context_is_left_on_a_connection_for_the_next(pooled: Database) -> None:
    """Thirty clients on three server connections: each entry names who wrote it."""
    together = Barrier(10)

    def write(number: int) -> None:
        together.wait(30)
        with get_db_session(actor=f"client {number}") as session:
            AuditLogRepository(session).add("test.said", "test", number)
        with get_db_session() as session:  # who says nothing is the system
            AuditLogRepository(session).add("test.silent", "test", number)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(write, range(30)))
    with get_db_session(read_only=True) as session:
        entries = session.query(AuditLog).where(AuditLog.resource_type == "test").all()
    assert len(entries) == 60
    assert {entry.actor for entry in entries if entry.action == "test.silent"} == {"system"}
    assert all(entry.actor == f"client {entry.resource_id}" for entry in entries if entry.action == "test.said")


def test_the_ledger_repeats_its_statements_on_any_connection(pooled: Database) -> None:
    """More calls than libpq's client takes to prepare a statement, by more clients than there are connections."""

    def look(number: int) -> int:
        ledger = open_ledger(f"client {number}")
        try:
            return sum(ledger.rescue() == ([], ()) for _ in range(20))
        finally:
            ledger.close()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(look, range(6))) == [20] * 6


def test_deployments_run_and_their_workers_may_be_killed(pooled: Database) -> None:
    with running_platform(pooled.stack, pooled) as platform:
        environment = {name: os.environ[name] for name in ("DATABASE_URL", "OPS_DATABASE_POOLER")}
        worker = platform.worker(**environment)
        assert platform.wait_ended(platform.deploy()) == "success"
        deployed = platform.deploy("--gate", "/nowhere")
        platform.wait_begun(deployed)
        for process in (worker.pid, *worker.children):
            os.kill(process, 9)
        assert platform.wait_ended(deployed) == "error: interrupted"
        with get_db_session() as session:
            retried = DatabaseService(session).retry_deployment(deployed.id)
            DatabaseService(session).cancel_deployment(retried.id)
        _settle(platform)


def _settle(platform: Platform) -> None:
    assert platform.rows("SELECT 1 FROM jobs WHERE state IN ('queued', 'running')") == []
