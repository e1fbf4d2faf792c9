"""The trail is the whole truth: replayed from its start, it gives the tables as they are.

Several writers at once, in transactions of their own, some of which are rolled back, or wait in vain for a lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import SCHEMA, Database
from worker.servers import OWNER_ROLE

WRITERS = 3
#: Keys of two parts that could be taken for each other.
KEYS = [("a/b", "c"), ("a", "b/c"), ("a\\", "/"), ("a", "b")]
SECRET = "[secret]"
#: What is no fact, and what is not shown.
IGNORED = {"applications": {"updated_at", "version_id"}, "things": {"touched"}}
HIDDEN = {
    "applications": {"command", "working_directory", "health_check_url", "configuration"},
    "things": {"password"},
}
NOUNS = {"application": "applications", "thing": "things"}

STATEMENTS = {
    "insert": "INSERT INTO things (a, b, value) VALUES (%(a)s, %(b)s, %(value)s)",
    "insert many": "INSERT INTO things (a, b, value) SELECT %(a)s, n::text, n FROM generate_series(1, 3) n",
    "update": "UPDATE things SET value = %(value)s, touched = touched + 1 WHERE a = %(a)s AND b = %(b)s",
    "update all": "UPDATE things SET value = value + %(value)s",
    "set nothing": "UPDATE things SET touched = touched + 1",
    "hide": "UPDATE things SET password = %(value)s::text, note = note || 'x' WHERE a = %(a)s",
    "rename": "UPDATE things SET b = b || %(b)s WHERE a = %(a)s AND length(b) < 9",
    "delete": "DELETE FROM things WHERE a = %(a)s AND value > %(value)s",
    "upsert": """INSERT INTO things (a, b, value) VALUES (%(a)s, %(b)s, 0), ('a', %(b)s || '!', 1)
        ON CONFLICT (a, b) DO UPDATE SET value = things.value + %(value)s, note = NULL""",
    "upsert nothing": "INSERT INTO things (a, b) VALUES (%(a)s, %(b)s) ON CONFLICT DO NOTHING",
    "merge": """MERGE INTO things t USING (VALUES (%(a)s, %(b)s)) AS n (a, b) ON t.a = n.a AND t.b = n.b
        WHEN MATCHED AND t.value > 3 THEN DELETE WHEN MATCHED THEN UPDATE SET value = t.value + 1
        WHEN NOT MATCHED THEN INSERT (a, b, value) VALUES (n.a, n.b, 1)""",
    "register": "INSERT INTO applications (name, description, command) VALUES (%(a)s, %(b)s, '[\"x\"]')",
    "describe": "UPDATE applications SET description = %(b)s || %(value)s, version_id = version_id + 1",
    "reconfigure": "UPDATE applications SET configuration = jsonb_build_object('n', %(value)s::int) WHERE name = %(a)s",
    "remove": "DELETE FROM applications WHERE name = %(a)s",
    "upsert application": """INSERT INTO applications (name) VALUES (%(a)s), (%(b)s || '?')
        ON CONFLICT (lower(name)) DO UPDATE SET description = excluded.name""",
    "both": """WITH gone AS (DELETE FROM things WHERE a = %(a)s RETURNING b)
        UPDATE applications SET description = (SELECT max(b) FROM gone)""",
}  # fmt: skip

Step = tuple[str, tuple[str, str], int]
steps = st.lists(st.tuples(st.sampled_from(sorted(STATEMENTS)), st.sampled_from(KEYS), st.integers(0, 5)), max_size=4)
#: Steps, then steps in a savepoint, whether that is kept, and whether the whole is.
transactions = st.tuples(steps, steps, st.booleans(), st.integers(0, 3).map(bool))
plans = st.lists(st.lists(transactions, max_size=3), min_size=WRITERS, max_size=WRITERS)


def decide(keeps: bool) -> None:
    """Roll the innermost transaction or savepoint back, or not."""
    if not keeps:
        raise psycopg.Rollback


class Writers:
    """Connections that work at the same time, and what they have left."""

    def __init__(self, database: Database, owner: psycopg.Connection, writers: list[psycopg.Connection]) -> None:
        self.database, self.owner, self.writers = database, owner, writers

    def empty(self) -> int:
        """Remove all rows; answers the id of the newest entry."""
        for table in NOUNS.values():
            self.owner.execute(f"DELETE FROM {table}")
        return int(self.owner.execute("SELECT coalesce(max(id), 0) FROM audit_logs").fetchone()[0])  # type: ignore[index]

    def work(self, pool: ThreadPoolExecutor, plan: list[list[Any]]) -> None:
        together = threading.Barrier(len(plan))
        list(pool.map(self._run, self.writers, plan, [together] * len(plan)))

    def _run(self, writer: psycopg.Connection, plan: list[Any], together: threading.Barrier) -> None:
        together.wait()
        for first, second, keeps_second, keeps in plan:
            # Also a victim of a deadlock, whoever waited in vain, and a key that is taken.
            with contextlib.suppress(psycopg.OperationalError, psycopg.IntegrityError), writer.transaction():
                self._steps(writer, first)
                with contextlib.suppress(psycopg.IntegrityError), writer.transaction():
                    self._steps(writer, second)
                    decide(keeps_second)
                decide(keeps)

    def _steps(self, writer: psycopg.Connection, steps: list[Step]) -> None:
        for name, (a, b), value in steps:
            try:
                writer.execute(STATEMENTS[name], {"a": a, "b": b, "value": value})
            except psycopg.errors.CardinalityViolation:  # one upsert named a row twice
                decide(False)

    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The rows as they are, without what is no fact, is not shown, or is nothing."""
        found = {}
        for noun, table in NOUNS.items():
            keys = "ARRAY['a', 'b']" if table == "things" else "ARRAY['id']"
            query = f"SELECT {SCHEMA}.ops_audit_key(to_jsonb(t), {keys}), to_jsonb(t) FROM {table} t"
            for key, row in self.owner.execute(query).fetchall():
                found[noun, key] = {
                    name: SECRET if name in HIDDEN[table] else value
                    for name, value in row.items()
                    if name not in IGNORED[table] and value is not None
                }
        return found

    def replayed(self, since: int) -> dict[tuple[str, str], dict[str, Any]]:
        """The rows as the entries after this one tell them. Fails where an entry does not follow from those before."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        # Whoever changes a row holds it until he commits, so its entries have their ids in the order of its changes.
        query = "SELECT action, resource_type, resource_id, changes FROM audit_logs WHERE id > %s ORDER BY id"
        for action, noun, key, changes in self.owner.execute(query, [since]).fetchall():
            verb = action.removeprefix(f"{noun}.")
            assert ((noun, key) in found) == (verb != "created"), (action, key)
            row = found.setdefault((noun, key), {})
            for name, (old, new) in changes.items():
                if SECRET not in (old, new):
                    assert row.get(name) == old, (action, key, name)
                row[name] = new
            found[noun, key] = {name: value for name, value in row.items() if value is not None}
            if verb == "deleted":
                assert found.pop((noun, key)) == {}
        return found


@pytest.fixture
def writers(database: Database) -> Iterator[Writers]:
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("""CREATE TABLE things (a text, b text, value int, note text DEFAULT '', password text,
            touched int DEFAULT 0, PRIMARY KEY (a, b))""")
        owner.execute("SELECT ops_audit_watch('things', '{password}', '{touched}', 'thing')")
        owner.execute("GRANT ALL ON things TO ops_app")
        made = [
            psycopg.connect(
                database.url, autocommit=True, options=f"-c search_path={SCHEMA} -c lock_timeout=40ms"
            )
            for _ in range(WRITERS)
        ]  # fmt: skip
        yield Writers(database, owner, made)
        for writer in made:
            writer.close()


def check(writers: Writers, examples: int) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(plans)
        def replay(plan: list[list[Any]]) -> None:
            since = writers.empty()
            writers.work(pool, plan)
            assert writers.replayed(since) == writers.rows()

        replay()


def test_the_trail_replayed_gives_the_tables_as_they_are(writers: Writers):
    check(writers, 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_for_longer(writers: Writers):
    check(writers, 2000)


def test_of_two_who_change_a_row_the_later_has_the_higher_id_whichever_transaction_began_first(writers: Writers):
    since = writers.empty()
    early, late = writers.writers[:2]
    late.execute("INSERT INTO things (a, b, value) VALUES ('a', 'b', 0)")
    with early.transaction():
        early.execute("INSERT INTO things (a, b) VALUES ('x', 'x')")  # has its number from now on
        late.execute("UPDATE things SET value = 1 WHERE a = 'a'")
        early.execute("UPDATE things SET value = 2 WHERE a = 'a'")
    entries = writers.owner.execute(
        "SELECT xid::text::bigint, changes->'value'->>1 FROM audit_logs WHERE id > %s AND resource_id = 'a/b'"
        " ORDER BY id", [since],
    ).fetchall()  # fmt: skip
    assert [value for _, value in entries] == ["0", "1", "2"]
    assert entries[1][0] > entries[2][0]  # by transaction it would be the other way round
    assert writers.replayed(since) == writers.rows()
