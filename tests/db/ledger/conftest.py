"""Jobs in a test's own database: enqueued, claimed, moved in time behind the ledger's back, looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row, namedtuple_row
from psycopg.types.json import Jsonb

from db.ledger import Claim, Ledger
from tests.conftest import SCHEMA, Database, fresh_database
from worker.devstack import Stack
from worker.servers import OWNER_ROLE

TASK = "tests.task"


@dataclass(frozen=True)
class Held:
    """A claim that said run."""

    id: UUID
    attempt: int
    token: UUID


class Jobs:
    """What the tests of the ledger do with jobs."""

    def __init__(self, ledger: Ledger, app: psycopg.Connection, owner: psycopg.Connection) -> None:
        self.ledger = ledger
        self.app = app
        self.owner = owner

    def add(self, **given: Any) -> UUID:
        """Enqueue in a transaction of its own; keywords are `ops_enqueue`'s, without the `p_`."""
        return enqueue(self.app, **given)[0]

    def claim(
        self, job_id: UUID, token: UUID | None = None, *, task: str = TASK, ledger: Ledger | None = None
    ) -> Claim:
        return (ledger or self.ledger).claim(
            job_id, task, token or uuid4(), worker="worker one", host="host one", holders=["1:1"]
        )

    def take(self, job_id: UUID) -> Held:
        """Claim what can be claimed."""
        token = uuid4()
        claim = self.claim(job_id, token)
        assert claim.verdict == "run"
        return Held(job_id, claim.attempt, token)

    def begin(self, held: Held) -> str:
        return self.ledger.begin(held.id, held.attempt, held.token, ["1:1", "2:2"])

    def take_and_begin(self, job_id: UUID) -> Held:
        held = self.take(job_id)
        assert self.begin(held) == "go"
        return held

    def beat(self, held: Held) -> str:
        return self.ledger.heartbeat(held.id, held.attempt, held.token)

    def finish(self, held: Held, outcome: str = "ok", **more: Any) -> str:
        return self.ledger.finish(held.id, held.attempt, held.token, outcome, **more)[0]

    def bells_of_finish(self, held: Held, outcome: str = "ok") -> list[UUID]:
        return [bell.id for bell in self.ledger.finish(held.id, held.attempt, held.token, outcome)[1]]

    def row(self, job_id: UUID) -> SimpleNamespace:
        """The row, with `ring_in` and the like: seconds from now until each of its times."""
        cursor = self.owner.cursor(row_factory=dict_row)
        row = cursor.execute("SELECT *, clock_timestamp() AS now FROM jobs WHERE id = %s", [job_id]).fetchone()
        assert row is not None
        ahead = {
            f"{name[:-3]}_in": (value - row["now"]).total_seconds()
            for name, value in row.items()
            if isinstance(value, datetime) and name.endswith("_at")
        }
        return SimpleNamespace(**row, **ahead)

    def state(self, job_id: UUID) -> tuple[str, str | None]:
        row = self.row(job_id)
        return row.state, row.outcome

    def change(self, job_id: UUID, assignments: str) -> None:
        """Move a row in time, as the role that owns the tables."""
        changed = self.owner.execute(f"UPDATE jobs SET {assignments} WHERE id = %s", [job_id])
        assert changed.rowcount == 1

    def lose_lease(self, held: Held) -> None:
        """The lease ran out a minute ago, and a first look saw it five seconds ago."""
        self.change(held.id, "lease_until = now() - interval '1 min', suspect_at = now() - interval '5 s'")

    def rescue(self, *, dead: Iterable[UUID] = ()) -> dict[UUID, tuple[str, str]]:
        """One look; answers what was moved: state and outcome."""
        return {row["id"]: (row["state"], row["outcome"]) for row in self.ledger.rescue(dead=dead)[0]}

    def all_due(self) -> None:
        """Every bell is due."""
        self.owner.execute("UPDATE jobs SET ring_at = now() - interval '1 s' WHERE state = 'queued'")

    def entries(self, job_id: UUID) -> list[Any]:
        """The audit entries of a job, oldest first."""
        cursor = self.owner.cursor(row_factory=namedtuple_row)
        query = "SELECT * FROM audit_logs WHERE resource_type = 'job' AND resource_id = %s ORDER BY id"
        return cursor.execute(query, [str(job_id)]).fetchall()

    def actions(self, job_id: UUID) -> list[str]:
        return [entry.action.removeprefix("job.") for entry in self.entries(job_id)]


def enqueue(connection: psycopg.Connection, **given: Any) -> tuple[UUID, bool]:
    """Call `ops_enqueue`; answers the id of the job that stands for the request, and whether it is new."""
    values = {"task": TASK, "queue": "a"} | given
    named = ", ".join(f"p_{name} => %({name})s" for name in values)
    parameters = {name: Jsonb(value) if isinstance(value, list | dict) else value for name, value in values.items()}
    row = connection.execute(f"SELECT id, created FROM ops_enqueue({named})", parameters).fetchone()
    assert row is not None
    return row[0], row[1]


class Crowd:
    """Calls that run at the same time, each in a thread and on a connection of its own."""

    def __init__(self, database: Database, pool: ThreadPoolExecutor, watch: psycopg.Connection) -> None:
        self.database = database
        self._pool = pool
        self._watch = watch

    def start(self, call: Callable[[], Any]) -> Future[Any]:
        return self._pool.submit(call)

    def wait_until_one_waits(self) -> None:
        """Until some session of this database waits for a lock."""
        query = """SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE NOT l.granted AND a.datname = current_database()"""
        end = time.monotonic() + 10
        while self._watch.execute(query).fetchone() is None:
            assert time.monotonic() < end, "nobody waits for a lock"

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection]:
        """A connection in an open transaction; the test commits it or rolls it back."""
        with psycopg.connect(self.database.url, options=f"-c search_path={SCHEMA}") as connection:
            yield connection

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        made = Ledger(self.database.url, SCHEMA)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def database(stack: Stack, template: str) -> Iterator[Database]:
    """One database for all tests of a file: a clone for each would take ten times as long as the test."""
    with fresh_database(stack, template) as made:
        yield made


@pytest.fixture
def owner(database: Database) -> Iterator[psycopg.Connection]:
    """The role that owns the tables."""
    with database.connect(OWNER_ROLE) as connection:
        yield connection


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    made = Ledger(database.url, SCHEMA)
    yield made
    made.close()


@pytest.fixture
def jobs(database: Database, ledger: Ledger, owner: psycopg.Connection) -> Iterator[Jobs]:
    for table in ("deployments", "jobs", "ticks"):
        owner.execute(f"DELETE FROM {table}")
    with database.connect() as app:
        # A rescue ends nothing within one grace of the server's start; a mark made before that would be too old after.
        old = "SELECT pg_postmaster_start_time() < clock_timestamp() - interval '4.1 s'"
        while not app.execute(old).fetchone()[0]:  # type: ignore[index]
            time.sleep(0.1)
        yield Jobs(ledger, app, owner)


@pytest.fixture
def crowd(database: Database) -> Iterator[Crowd]:
    with database.connect() as watch, ThreadPoolExecutor() as pool:
        yield Crowd(database, pool, watch)
