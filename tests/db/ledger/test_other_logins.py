"""What a login with few rights cannot do: stop the rescue, the trail or other people's lists."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from db.connection import get_db_session
from db.repositories import JobRepository
from tests.conftest import Database
from tests.db.test_migrations import role_of


@pytest.fixture
def enqueuer(jobs, database: Database) -> Iterator[psycopg.Connection]:
    """Acts as a role that may only enqueue."""
    with role_of(database, "enqueue") as role:
        yield role


@pytest.fixture
def reader(jobs, database: Database) -> Iterator[psycopg.Connection]:
    """Acts as a role that may only read."""
    with role_of(database, "read") as role:
        yield role


#: Each was accepted once, and each stopped every rescue, or every list of jobs, from then on.
POISON = {
    "an actor's type that the trail does not know": ("context", """'{"actor_type": "nobody"}'"""),
    "an actor's id that is no number": ("context", """'{"actor_id": "one"}'"""),
    "an address that is none": ("context", """'{"ip_address": "here"}'"""),
    "a name too long for the trail's index": ("context", "jsonb_build_object('actor', repeat('x', 201))"),
    "a context that is no object": ("context", "'5'"),
    "arguments that are no list": ("args", "'5'"),
    "named arguments that are no object": ("kwargs", "'[]'"),
    "a time that Python has not": ("run_at", "'infinity'"),
    "a time before all times": ("run_at", "'-infinity'"),
    "a bell that never rings": ("ring_at", "'infinity'"),
    "an expiry that Python has not": ("expires_at", "'10001-01-01'"),
    "a lease without an end": ("lease_seconds", "'Infinity'"),
    "a lease that is no number": ("lease_seconds", "'NaN'"),
    "a pause that is no number": ("backoff_seconds", "'NaN'"),
    "no task": ("task", "''"),
    "a queue of any length": ("queue", "repeat('q', 256)"),
    "a queue that no broker lets one have": ("queue", "'amq.topic'"),
}


@pytest.mark.parametrize("what", POISON)
def test_a_job_that_nobody_could_move_or_list_is_refused_when_it_is_written(jobs, enqueuer, what):
    column, value = POISON[what]
    columns = {"id": "gen_random_uuid()", "task": "'t'", "queue": "'a'", "expires_at": "now()"} | {column: value}
    # What the transaction says of itself is what the first entry holds, so the row's own word is not looked at there.
    enqueuer.execute("SELECT set_config('ops.context', '{\"actor\": \"me\"}', false)")
    with pytest.raises(psycopg.DatabaseError):
        enqueuer.execute(f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({', '.join(columns.values())})")
    lost = jobs.take(jobs.add())
    jobs.lose_lease(lost)
    assert lost.id in jobs.rescue()
    with get_db_session() as session:
        assert JobRepository(session).list_(limit=50).items


def test_whoever_only_reads_cannot_stop_the_rescue_or_the_trail(jobs, reader):
    for name in ("ops_rescue", "ops_audit_partitions"):
        reader.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
    lost = jobs.take(jobs.add())
    jobs.lose_lease(lost)
    assert set(jobs.rescue()) == {lost.id}
    with reader.transaction():
        assert reader.execute("SELECT count(*) FROM audit_logs").fetchone()[0] > 0
        # With a lock timeout, so that the test ends where the promise does not hold.
        jobs.app.execute("SET lock_timeout = '10 s'")
        assert jobs.app.execute("SELECT ops_audit_make_partitions(9)").fetchone() == (0,)
        assert jobs.add()
    assert jobs.app.execute("SELECT ops_audit_make_partitions(9)").fetchone() == (3,)


def test_whoever_only_reads_may_call_nothing_of_ours_and_lock_nothing(reader):
    for statement in (
        "SELECT ops_enqueue('t')",
        "SELECT ops_audit('x', 'y', 'z')",
        "SELECT ops_cancel(gen_random_uuid())",
        "SELECT 1 FROM jobs FOR UPDATE",
        "DO 'BEGIN LOCK TABLE jobs IN ROW SHARE MODE; END'",
        "CREATE FUNCTION ops_mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(statement)
