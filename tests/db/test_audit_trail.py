"""The trail itself: it only grows, is kept long enough, takes in other people's tables, and can be searched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from db.connection import audit_context, get_db_session
from db.models import Application, AuditLog, User
from db.repositories import AuditLogRepository, audit_logs
from tests.bench.entries import FILL
from tests.conftest import Database
from worker.servers import OWNER_ROLE

Sql = Callable[..., list[tuple]]


@pytest.fixture
def owner(database: Database) -> Iterator[psycopg.Connection]:
    """The role that owns the tables."""
    with database.connect(OWNER_ROLE) as connection:
        yield connection


@pytest.fixture
def partition(sql: Sql) -> str:
    """The partition of this month, with an entry in it."""
    sql("INSERT INTO users (username, email) VALUES ('one', 'one@example.org')")
    ((name,),) = sql("SELECT tableoid::regclass::text FROM audit_logs WHERE resource_type = 'user'")
    return str(name)


def old_partition(owner: psycopg.Connection, month: str, following: str, rows: int = 1) -> str:
    name = f"audit_logs_{month.replace('-', '_')}"
    owner.execute(f"CREATE TABLE {name} PARTITION OF audit_logs FOR VALUES FROM ('{month}-01') TO ('{following}-01')")
    owner.execute(
        "INSERT INTO audit_logs (at, action, resource_type, actor_type, actor)"
        f" SELECT '{month}-15', 'x', 'x', 'system', 'x' FROM generate_series(1, {rows})"
    )
    return name


def names(owner: psycopg.Connection) -> list[str]:
    rows = owner.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_logs'::regclass ORDER BY 1"
    )
    return [name for (name,) in rows]


CHANGES = [
    "UPDATE {table} SET actor = 'somebody else'",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
]


def changes(partition: str) -> list[str]:
    return [statement.format(table=table) for statement in CHANGES for table in ("audit_logs", partition)]


def test_the_runtime_role_has_no_right_to_change_an_entry(sql: Sql, partition):
    for statement in changes(partition):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            sql(statement)
    assert sql("SELECT actor FROM audit_logs WHERE resource_type = 'user'") == [("ops_app",)]


def test_not_even_the_owner_can_change_an_entry(sql: Sql, owner, partition):
    for statement in changes(partition):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            owner.execute(statement)
    assert sql("SELECT actor FROM audit_logs WHERE resource_type = 'user'") == [("ops_app",)]


def test_an_entry_cannot_be_moved_to_another_month(owner, partition):
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        owner.execute("UPDATE audit_logs SET at = at + interval '1 month'")


def test_the_runtime_role_cannot_write_entries_past_the_functions(sql: Sql, partition):
    for table in ("audit_logs", partition):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            sql(
                f"INSERT INTO {table} (action, resource_type, actor_type, actor, db_user)"
                " VALUES ('x', 'x', 'user', 'somebody', 'ops_owner')"
            )


def test_an_entry_by_hand_names_the_login_that_wrote_it(sql: Sql):
    sql("SELECT ops_audit('x', 'thing', '1', NULL, NULL, '{\"actor\": \"root\", \"actor_type\": \"user\"}')")
    assert sql("SELECT actor, db_user FROM audit_logs WHERE resource_type = 'thing'") == [("root", "ops_app")]


def test_the_runtime_role_cannot_take_the_trail_apart(sql: Sql, partition):
    for statement in (
        "ALTER TABLE users DISABLE TRIGGER USER",
        "DROP TRIGGER ops_audit_update ON users",
        "SELECT ops_audit_unwatch('users')",
        "ALTER TABLE audit_logs DISABLE TRIGGER ALL",
        f"DROP TABLE {partition}",
        f"ALTER TABLE audit_logs DETACH PARTITION {partition}",
        "SET session_replication_role = replica",
        "CREATE OR REPLACE FUNCTION ops_audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            sql(statement)


def test_nothing_on_the_callers_search_path_stands_in_for_our_tables(sql: Sql):
    sql("CREATE TEMP TABLE audit_logs (LIKE audit_logs)")
    sql(
        "CREATE FUNCTION pg_temp.ops_audit_context() RETURNS jsonb LANGUAGE sql"
        " AS $$ SELECT jsonb_build_object('actor', 'nobody') $$"
    )
    sql("INSERT INTO users (username, email) VALUES ('one', 'one@example.org')")
    assert sql("SELECT count(*) FROM pg_temp.audit_logs") == [(0,)]


def test_partitions_are_made_ahead_and_once(sql: Sql, owner):
    assert len(names(owner)) == 7
    assert sql("SELECT ops_audit_make_partitions(6)") == [(0,)]
    assert sql("SELECT ops_audit_make_partitions(7)") == [(1,)]
    owner.execute(
        "INSERT INTO audit_logs (at, action, resource_type, actor_type, actor)"
        " VALUES (date_trunc('month', now()) + interval '7 months', 'x', 'x', 'system', 'x')"
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        owner.execute(f"TRUNCATE {names(owner)[-1]}")


def test_months_begin_at_the_same_moment_whoever_makes_their_partitions(sql: Sql, owner):
    owner.execute(f"DROP TABLE {names(owner)[-1]}")
    sql("SET timezone = 'Pacific/Kiritimati'")
    assert sql("SELECT ops_audit_make_partitions(6)") == [(1,)]
    owner.execute("SET timezone = 'UTC'")
    bounds = owner.execute(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = %s::regclass", [names(owner)[-1]]
    ).fetchone()
    assert bounds[0].count("-01 00:00:00+00'") == 2


def test_partitions_are_dropped_after_their_time_and_that_is_recorded(sql: Sql, owner, session):
    kept = names(owner)
    old_partition(owner, "2020-01", "2020-02", rows=3)
    recent = (datetime.now(UTC).replace(day=1) - timedelta(days=40)).replace(day=1)
    following = (recent + timedelta(days=31)).replace(day=1)
    kept.append(old_partition(owner, f"{recent:%Y-%m}", f"{following:%Y-%m}"))
    assert sql("SELECT ops_audit_drop_partitions(90)") == [(1,)]
    assert sorted(names(owner)) == sorted(kept)
    (entry,) = AuditLogRepository(session).search(action="audit.partition_dropped").items
    assert (entry.resource_id, entry.details) == ("audit_logs_2020_01", {"entries": 3, "keep_days": 90})
    assert sql("SELECT ops_audit_drop_partitions(90)") == [(0,)]


@pytest.mark.parametrize("role", ["ops_app", OWNER_ROLE])
def test_nothing_younger_than_ninety_days_is_dropped_whoever_asks(database: Database, owner, role):
    old_partition(owner, "2020-01", "2020-02")
    with database.connect(role) as connection:
        for days in (89, 0, -1):
            with pytest.raises(psycopg.errors.RaiseException, match="at least 90 days"):
                connection.execute("SELECT ops_audit_drop_partitions(%s)", [days])
        connection.execute("SELECT ops_audit_drop_partitions(NULL)")
    assert "audit_logs_2020_01" in names(owner)


@pytest.fixture
def trail(session: Session) -> AuditLogRepository:
    """Three users' deeds: anna makes an application and renames it twice, a job of ben's makes another."""
    audit_context(session, actor="anna", actor_id=7, actor_type="user")
    session.add(Application(name="shop", command=[], description="one"))
    session.flush()
    for description in ("two", "three"):
        session.execute(update(Application).values(description=description))
    audit_context(session, actor="ben", actor_id=8, task_id=JOB)
    session.add(Application(name="shop-2", command=[]))
    session.add(User(username="eve", email="eve@example.org", is_active=False))
    session.flush()
    AuditLogRepository(session).add("secret.opened", "secret", 5, {"name": "aws/token"})
    return AuditLogRepository(session)


JOB = uuid4()


def actions(found: AuditLogRepository, **search: object) -> list[str]:
    return [entry.action for entry in found.search(**search).items]


def test_the_trail_is_searched_by_what_who_which_task_and_when(trail, session):
    key = trail.search(resource="application").items[-1].resource_id
    assert actions(trail, resource=f"application:{key}") == ["application.updated"] * 2 + ["application.created"]
    assert sorted(actions(trail, actor="ben")) == ["application.created", "secret.opened", "user.created"]
    assert actions(trail, action="secret.opened", actor="anna") == []
    assert len(actions(trail, task_id=JOB)) == 3
    assert actions(trail, action="application.*", actor="anna")[-1] == "application.created"
    assert actions(trail, action="app_ication.*") == actions(trail, action="%.*") == []
    middle = trail.search(actor="anna").items[0].at
    assert actions(trail, until=middle, resource="application") == ["application.updated", "application.created"]
    assert len(actions(trail, since=middle)) == 4


def test_the_trail_is_searched_by_a_column_that_was_set_to_a_value(trail):
    assert actions(trail, changed="description", to="two") == ["application.updated"]
    assert actions(trail, changed="description", to="one") == ["application.created"]
    assert len(actions(trail, changed="description")) == 3
    assert actions(trail, changed="is_active", to=False) == ["user.created"]
    assert actions(trail, changed="is_active", to=True) == []


def test_pages_of_the_trail_follow_each_other_without_a_gap(trail):
    whole = [entry.id for entry in trail.search(limit=1000).items]
    pages, before = [], None
    while True:
        page = trail.search(limit=2, before=before)
        pages.append([entry.id for entry in page.items])
        before = page.next
        if before is None:
            break
    assert [len(page) for page in pages] == [2, 2, 2]
    assert [key for page in pages for key in page] == whole == sorted(whole, reverse=True)
    assert len(trail.search(limit=0).items) == 1


@pytest.mark.parametrize("stretches", [(), (1,), (3, 7), (10, 1000)])
def test_a_search_by_value_looks_back_in_stretches_and_leaves_nothing_out(owner, session, monkeypatch, stretches):
    monkeypatch.setattr(audit_logs, "STRETCHES", stretches)
    owner.execute(FILL, [1, 40])
    trail = AuditLogRepository(session)
    statement = "SELECT id FROM audit_logs WHERE changes->'version'->>1 IN ('v1', 'v3') ORDER BY 1 DESC"
    whole = [row[0] for row in owner.execute(statement)]
    assert len(whole) == 20
    found, before = [], None
    while True:
        page = trail.search(changed="version", to=("v1", "v3"), limit=3, before=before)
        found += [entry.id for entry in page.items]
        assert len(page.items) == 3 or page.next is None
        if (before := page.next) is None:
            break
    assert found == whole


def test_a_story_is_everything_about_some_things_in_order(trail, session):
    newest, _, _, oldest = trail.search(resource="application").items
    told = trail.story([("application", oldest.resource_id), ("secret", "5")])
    assert [entry.action for entry in told] == [
        "application.created", "application.updated", "application.updated", "secret.opened",
    ]  # fmt: skip
    assert newest.id not in [entry.id for entry in told]
    assert trail.story([]) == []
    assert trail.story([("application", "0"), ("secret", "application")]) == []


def test_what_one_user_did_is_not_what_a_namesake_did(trail, session):
    audit_context(session, actor="anna", actor_id=99)
    trail.add("x", "thing", 1)
    assert [entry.actor_id for entry in trail.get_user_activity(7)] == [7, 7, 7]
    assert len(trail.get_user_activity(99)) == 1


SEARCHES = [
    {},
    {"resource": "deployment:42"},
    {"resource": "nothing"},
    {"resource": "job"},
    {"actor": "worker-7"},
    {"actor": "nobody"},
    {"action": "job.failed"},
    {"action": "job.*"},
    {"action": "nothing.*"},
    {"task_id": JOB},
    {"changed": "status"},
    {"changed": "nothing"},
    {"changed": "version", "to": "v4711"},
    {"changed": "version", "to": ("v4711", 4711)},
    {"secret": "aws/key-7"},
    {"secret": "aws/nothing"},
    {"actor": "worker-7", "action": "job.failed"},
    {"resource": "deployment:42", "changed": "status", "to": "success"},
    {"since": datetime.now(UTC) + timedelta(days=1)},
    {"until": datetime(2020, 1, 1, tzinfo=UTC)},
]


def test_a_page_of_a_search_reads_a_small_part_of_the_trail_whatever_it_asks_for(database: Database, owner):
    owner.execute(FILL, [1, 40_000])
    owner.execute("VACUUM ANALYZE audit_logs")
    pages = owner.execute("SELECT sum(relpages) FROM pg_class WHERE relname LIKE 'audit_logs_2%'").fetchone()[0]
    assert pages > 1500
    for asked in SEARCHES:
        for before in (None, 10_000):
            read, plan = blocks_read(asked, before)
            assert read < pages / 4, (asked, before, plan)


def blocks_read(asked: dict, before: int | None) -> tuple[int, str]:
    with get_db_session() as session:
        conditions = AuditLogRepository.conditions(**asked)
        if before is not None:
            conditions.append(AuditLog.id < before)
        page = select(AuditLog).where(*conditions).order_by(AuditLog.id.desc()).limit(51)
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", explained, retval=True)
        (plan,) = connection.execute(page).cursor.fetchone()
    top = plan[0]["Plan"]
    return top["Shared Hit Blocks"] + top["Shared Read Blocks"], json.dumps(plan)


def explained(_connection, _cursor, statement: str, parameters, _context, _many) -> tuple[str, object]:
    return f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
