"""What the next migration needs: it is written, told, checked and applied as it should be, while the platform works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from db import migrate
from db.ledger import Ledger
from db.preflight import head_revision
from tests.conftest import SCHEMA, Database
from worker.servers import OWNER_ROLE

ROOT = Path(migrate.__file__).parent.parent
FIRST = head_revision()
NOTE = (
    "op.add_column('jobs', sa.Column('note', sa.Text()))\n"
    "    op.execute('ALTER TABLE jobs ADD CONSTRAINT ck_jobs_note CHECK (length(note) < 100) NOT VALID')"
)
INDEX = (
    "sql.concurrently('DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_note',\n"
    "        'CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_jobs_note ON jobs (note)')\n"
    "    op.execute('ALTER TABLE jobs VALIDATE CONSTRAINT ck_jobs_note')"
)


@dataclass(frozen=True)
class Release:
    """A copy of what is released, to which migrations are added."""

    folder: Path

    def add(self, revision: str, upgrade: str, downgrade: str, *, after: str = FIRST) -> None:
        imports = "import sqlalchemy as sa\nfrom alembic import op\nfrom migrations import sql\n"
        names = f"revision = '{revision}'\ndown_revision = '{after}'\nbranch_labels = None\ndepends_on = None\n"
        (self.folder / "migrations" / "versions" / f"{revision}.py").write_text(
            f'"""Do {revision}."""\n{imports}{names}\n'
            f"def upgrade():\n    {upgrade}\n\ndef downgrade():\n    {downgrade}\n"
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=os.environ | {"PYTHONPATH": str(self.folder)}, text=True,
            capture_output=True, check=False,
        )  # fmt: skip

    def ops(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from worker.cli import main; main()", *arguments)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    for folder in ("migrations", ".ci"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return Release(tmp_path)


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_history_says_what_is_there_and_what_is_applied(release: Release, database: Database):
    release.add("20270101_0900", "op.execute('SELECT 1')", "pass")
    items = json.loads(good(release.ops("--json", "db", "history")))["items"]
    said = [(each["revision"], each["after"], each["applied"]) for each in items]
    assert said[0] == ("20270101_0900", FIRST, False)
    assert said[1][0] == FIRST
    assert said[-1][1] is None
    assert all(applied for _, _, applied in said[1:])
    assert items[0]["message"] == "Do 20270101_0900."
    assert items[0]["path"].endswith("20270101_0900.py")
    good(release.ops("db", "upgrade"))
    shown = good(release.ops("db", "history")).splitlines()
    assert [line.split()[:3] for line in shown if "Do 2027" in line] == [["20270101_0900", FIRST, "yes"]]
    assert all(each["applied"] for each in json.loads(good(release.ops("--json", "db", "history")))["items"])


def test_the_history_of_a_database_without_tables_changes_nothing(release: Release, database: Database):
    migrate.downgrade("base")
    assert not any(each.applied for each in migrate.history())
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("INSERT INTO ops_alembic_version VALUES ('of_tomorrow')")
    done = release.ops("db", "history")
    assert done.returncode == 3
    assert "of_tomorrow, which this release does not know" in done.stderr


@pytest.mark.slow
def test_a_revision_is_what_the_models_have_and_the_database_lacks(release: Release, database: Database, sql):
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("ALTER TABLE users DROP COLUMN last_login_at")
    path = json.loads(good(release.ops("--json", "db", "revision", "-m", "Tell the last login")))["path"]
    assert Path(path).parent == release.folder / "migrations" / "versions"
    assert path.endswith("_tell_the_last_login.py")
    written = Path(path).read_text()
    assert written.count("op.add_column") == 1
    assert written.count("op.") == 2  # and its way back; nothing of partitions
    good(release.ops("db", "upgrade"))
    good(release.ops("db", "check"))
    good(release.ops("db", "downgrade", "--yes", "--", "-1"))
    assert sql("SELECT version_num FROM ops_alembic_version") == [(FIRST,)]
    good(release.run("-m", "alembic", "upgrade", "head"))
    good(release.run("-m", "alembic", "check"))
    assert "(head)" in good(release.run("-m", "alembic", "current"))


def test_two_heads_are_one_line_that_names_them(release: Release, database: Database):
    release.add("20270101_0900", "pass", "pass")
    release.add("20270101_0901", "pass", "pass")
    for done in (release.run(".ci/drift.py"), release.ops("status")):
        assert done.returncode != 0
        assert "2 newest migrations (20270101_0900, 20270101_0901) and must have one" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("upgrade", "downgrade", "told"),
    [
        ("CREATE INDEX ix_more ON jobs (worker)", "SELECT 1", "new: index ix_more"),
        ("DROP INDEX ix_jobs_task", "SELECT 1", "gone: index ix_jobs_task"),
        ("SELECT 1", "GRANT SELECT (task) ON jobs TO public", "changed: column jobs.task"),
        ("SELECT 1", "ALTER TABLE users DISABLE TRIGGER ops_audit_insert", "changed: trigger users.ops_audit_insert"),
        ("SELECT 1", "ALTER TABLE jobs ALTER COLUMN queue SET DEFAULT 'x'", "changed: column jobs.queue"),
        (
            "SELECT 1",
            "CREATE OR REPLACE FUNCTION ops_due_queues() RETURNS SETOF text LANGUAGE sql AS 'SELECT NULL::text'",
            "changed: function ops_due_queues()",
        ),
    ],
)
def test_what_a_downgrade_forgets_is_told_by_name(release: Release, upgrade: str, downgrade: str, told: str):
    release.add("20270101_0900", f'op.execute("{upgrade}")', f'op.execute("{downgrade}")')
    done = release.run(".ci/drift.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "20270101_0900: its downgrade leaves another database" in done.stdout
    assert told in done.stdout


@pytest.mark.slow
def test_a_migration_that_undoes_itself_is_in_order(release: Release):
    release.add("20270101_0900", "op.execute('CREATE INDEX ix_more ON jobs (worker)')", "op.drop_index('ix_more')")
    release.add("20270101_0901", INDEX.replace("note", "host").replace("(host)", "(worker_host)").split("\n    op.")[0],
        "sql.concurrently('DROP INDEX CONCURRENTLY ix_jobs_host')", after="20270101_0900")  # fmt: skip
    done = release.run(".ci/drift.py")
    # Each undoes itself; the models do not have them, which is told as well.
    assert "its downgrade" not in done.stdout + done.stderr
    assert "up is another" not in done.stdout + done.stderr
    assert "remove_index" in done.stdout


@pytest.mark.parametrize(
    ("upgrade", "told"),
    [
        ("op.execute('CREATE INDEX ix_more ON jobs (worker)')", "require-concurrent-index-creation"),
        ("op.drop_column('jobs', 'worker')", "ban-drop-column"),
        ("op.add_column('jobs', sa.Column('more', sa.Text(), nullable=False))", "adding-required-field"),
        ("op.execute('ALTER TABLE jobs ADD CONSTRAINT ck_x CHECK (seq > 0)')", "constraint-missing-not-valid"),
        ("op.execute('-- squawk-ignore ban-drop-column\\nALTER TABLE jobs DROP COLUMN worker')", None),
        (NOTE, None),
        (INDEX, None),
    ],
)
def test_a_new_migration_that_would_stop_the_platform_is_found(release: Release, upgrade: str, told: str | None):
    release.add("20270101_0900", upgrade, "pass")
    done = release.run(".ci/squawk.py")
    if told is None:
        good(done)
    else:
        assert done.returncode == 1
        assert told in done.stdout
        assert "20270101_0900.sql" in done.stdout


class Load:
    """Writers that enqueue, claim and finish jobs, one after the other, and how long the slowest call took."""

    def __init__(self, database: Database, writers: int) -> None:
        self.longest = 0.0
        self.done = 0
        self._database = database
        self._round = [threading.Event() for _ in range(writers)]
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(writers)
        self._writers = [self._pool.submit(self._write, number) for number in range(writers)]

    def another_round(self) -> None:
        """Until every writer has finished a job that it began later than now; raises what made one fail."""
        for _ in range(2):
            for event in self._round:
                event.clear()
            for event, writer in zip(self._round, self._writers, strict=True):
                while not event.wait(0.1):
                    if writer.done():
                        writer.result()

    def stop(self) -> None:
        self._stop.set()
        for writer in self._writers:
            writer.result(30)
        self._pool.shutdown()

    def _write(self, number: int) -> None:
        ledger = Ledger(self._database.url, SCHEMA)
        with self._database.connect() as app:
            while not self._stop.is_set():
                self._job(ledger, app)
                self.done += 1
                self._round[number].set()
        ledger.close()

    def _job(self, ledger: Ledger, app: psycopg.Connection) -> None:
        job_id: UUID = self._timed(lambda: app.execute("SELECT id FROM ops_enqueue('t')").fetchone()[0])  # type: ignore[index]
        token = uuid4()
        claim = self._timed(
            lambda: ledger.claim(job_id, "t", token, worker="w", host="h", holders=["1:1"], patience=never)
        )
        assert claim.verdict == "run"
        state = self._timed(lambda: ledger.finish(job_id, claim.attempt, token, "ok", patience=never)[0])
        assert state == "succeeded"

    def _timed(self, call: Callable[[], object]) -> object:
        began = time.monotonic()
        try:
            return call()
        finally:
            self.longest = max(self.longest, time.monotonic() - began)


def never(_error: Exception, _tries: int) -> None:
    """A statement that fails is not tried again: none is to fail."""


@pytest.fixture
def load(database: Database) -> Iterator[Load]:
    made = Load(database, writers=4)
    try:
        made.another_round()
        yield made
    finally:
        made.stop()


def test_a_migration_of_a_busy_table_holds_no_writer_up_longer_than_the_lock_timeout(
    release: Release, database: Database, load: Load, sql
):
    release.add("20270101_0900", NOTE, "op.drop_column('jobs', 'note')")
    release.add(
        "20270101_0901", INDEX, "sql.concurrently('DROP INDEX CONCURRENTLY ix_jobs_note')", after="20270101_0900"
    )
    with database.connect() as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM jobs")
        done = release.ops("db", "upgrade")
    assert done.returncode != 0
    assert "lock timeout" in done.stderr
    assert migrate.history()[0].applied
    load.another_round()
    waited = load.longest
    good(release.ops("db", "upgrade"))
    load.another_round()
    load.stop()
    # They did wait behind the migration that waited for the reader, and no longer than it may.
    assert waited > migrate.LOCK_SECONDS / 2
    assert load.longest < 2 * migrate.LOCK_SECONDS
    assert sql(
        "SELECT convalidated, indisvalid FROM pg_constraint, pg_index"
        f" WHERE conname = 'ck_jobs_note' AND indexrelid = '{SCHEMA}.ix_jobs_note'::regclass"
    ) == [(True, True)]
    assert sql("SELECT count(*) FROM jobs WHERE state = 'succeeded'") == [(load.done,)]
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'job.succeeded'") == [(load.done,)]


def test_an_index_is_built_while_another_migration_waits_for_its_turn(release: Release, database: Database, sql):
    release.add("20270101_0900", NOTE, "pass")
    release.add("20270101_0901", INDEX, "pass", after="20270101_0900")
    with ThreadPoolExecutor() as pool, database.connect() as reader, database.connect("postgres") as root:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM users")  # the index waits for whoever has looked before it
        both = [pool.submit(release.ops, "db", "upgrade") for _ in range(2)]
        wait_for(root, "SELECT FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'")
        # The other asks again and again; whoever waited within a statement would be waited for as well.
        wait_for(root, f"SELECT FROM pg_stat_activity WHERE {ASKS_FOR_ITS_TURN}")
        reader.execute("ROLLBACK")
        for each in both:
            good(each.result())
    assert sql(f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{SCHEMA}.ix_jobs_note'::regclass") == [(True,)]


#: Between two questions, and in no transaction.
ASKS_FOR_ITS_TURN = "query = 'COMMIT' AND state = 'idle' AND usename = 'ops_owner' AND datname = current_database()"


def wait_for(root: psycopg.Connection, query: str) -> None:
    """Until this finds something."""
    end = time.monotonic() + 30
    while not root.execute(query).fetchall():
        assert time.monotonic() < end, query
        time.sleep(0.02)
