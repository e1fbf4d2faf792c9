"""What must hold of the code and of the schema, and what import contracts cannot say."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, Task
from celery.exceptions import DuplicateTaskNameWarning
from sqlalchemy import DateTime
from sqlalchemy.orm import configure_mappers

import tasks
from db.models import Base
from db.schedule_specs import OWN_TASKS
from db.services.deployments import RUN_TASK
from tests.conftest import SCHEMA
from worker.servers import OWNER_ROLE

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("db", "tasks", "worker") for path in (ROOT / package).rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 60

#: Heartbeats, log chunks, ticks and the trail itself; jobs and pauses leave entries of their own.
NOT_UNDER_AUDIT = {
    "deployment_logs",
    "processes",
    "ticks",
    "ledger_state",
    "counters",
    "counter_position",
    "login_limits",
    "audit_logs",
    "audit_seals",
    "jobs",
    "check_states",
    "check_results",
    "check_rollups",
    "check_intervals",
}
AUDIT_TRIGGERS = {"ops_audit_insert", "ops_audit_update", "ops_audit_delete", "ops_audit_truncate"}

#: What lists ask for: table, condition, order.
LISTS = [
    *((table, "true", "id") for table in ("users", "api_keys", "applications", "infrastructure", "deployments")),
    ("deployments", "user_id = 1", "id"),
    ("deployments", "user_id = 1 AND status = 'failed'", "id"),
    ("deployments", "application_id = 1", "id"),
    ("deployments", "application_id = 1 AND infrastructure_id = 1", "id"),
    ("deployments", "infrastructure_id = 1", "id"),
    ("deployments", "status = 'failed'", "id"),
    ("deployment_logs", "deployment_id = 1", "id"),
    ("jobs", "true", "seq"),
    ("jobs", "state = 'failed'", "seq"),
    ("jobs", "task = 't'", "seq"),
    ("schedules", "true", "id"),
    ("schedule_runs", "schedule_id = 1", "fire_at"),
    ("schedule_runs", "schedule_id = 1 AND outcome <> 'skipped'", "fire_at"),
    ("monitoring_alerts", "status = 'firing'", "id"),
    ("monitoring_alerts", "application_id = 1", "id"),
    ("monitoring_alerts", "infrastructure_id = 1", "id"),
    ("monitoring_alerts", "true", "id"),
    ("alert_events", "alert_id = 1", "id"),
    *((table, "true", "id") for table in ("silences", "maintenance_windows")),
    *((table, "true", "id") for table in ("notification_channels", "notification_routes", "notifications")),
    ("alert_rules", "true", "name"),
    ("monitoring_checks", "true", "id"),
    ("monitoring_checks", "application_id = 1", "id"),
    ("monitoring_checks", "infrastructure_id = 1", "id"),
]
#: What is looked up by something other than its key.
LOOK_UPS = [
    ("monitoring_checks", "lower(name) = 'x'"),
    ("monitoring_checks", "ping_token = '00000000-0000-0000-0000-000000000000'"),
    ("check_states", "next_run_at <= now()"),
    ("check_results", "check_id = 1 AND at > now() - interval '1 day'"),
    ("check_rollups", "check_id = 1 AND span = 'hour' AND starts_at > now()"),
    ("check_intervals", "check_id = 1 AND ended_at IS NULL"),
    ("users", "lower(username) = 'x'"),
    ("users", "lower(email) = 'x'"),
    ("applications", "lower(name) = 'x'"),
    ("infrastructure", "lower(name) = 'x'"),
    ("infrastructure", "owner_id = 1"),
    ("hosts", "infrastructure_id = 1 AND lower(name) = 'x'"),
    ("hosts", "infrastructure_id = 1"),
    ("deployment_hosts", "deployment_id = 1"),
    ("login_limits", "refills_at < now()"),
    ("schedules", "lower(name) = 'x'"),
    ("schedules", "next_run_at <= now()"),
    ("schedule_runs", "fired_at < now() - interval '30 days'"),
    ("api_keys", "user_id = 1 AND service_name = 'x' AND key_name = 'x'"),
    ("deployments", "job_id = '00000000-0000-0000-0000-000000000000'"),
    ("jobs", "lock_key = 'x' AND state = 'running'"),
    ("jobs", "finished_at < now() - interval '30 days'"),
    ("monitoring_alerts", "fingerprint = 'x' AND status <> 'resolved'"),
    ("monitoring_alerts", "fingerprint = 'x' AND episode = '1'"),
    ("monitoring_alerts", "resolved_at < now() - interval '30 days'"),
    ("check_intervals", "ended_at > now() - interval '1 minute'"),
    ("silences", "ends_at > now()"),
    ("maintenance_windows", "ends_at > now()"),
    ("notification_channels", "lower(name) = 'x'"),
    ("notification_routes", "channel_id = 1"),
    ("notifications", "alert_id = 1"),
    ("notifications", "job_id = '00000000-0000-0000-0000-000000000000'"),
    ("notifications", "channel_id IN (1, 2) AND queued_at > now() - interval '1 minute'"),
]
#: What is found by an index of just those rows.
FEW = [
    ("monitoring_alerts", "cleared_at IS NULL", "ix_monitoring_alerts_uncleared"),
    ("monitoring_alerts", "settled_at IS NULL", "ix_monitoring_alerts_unsettled"),
    ("notifications", "state = 'waiting'", "ix_notifications_open"),
    ("notifications", "state = 'queued'", "ix_notifications_open"),
    ("check_states", "state IN ('down', 'degraded')", "ix_check_states_state"),
    ("check_states", "blind_at IS NOT NULL", "ix_check_states_blind_at"),
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_no_file_is_longer_than_can_be_kept_in_mind():
    for path in SOURCES:
        length = len(path.read_text("utf-8").splitlines())
        assert length <= MAX_FILE, f"{name(path)} has {length} lines"


def test_no_function_is_longer_than_a_screen():
    for path in SOURCES:
        for function in functions(path):
            length = (function.end_lineno or 0) - function.lineno + 1
            assert length <= MAX_FUNCTION, f"{name(path)}: {function.name} has {length} lines"


def test_transactions_begin_and_end_in_one_place():
    # The same for an event loop; and engines of their own: what is checked before a process starts, and beat's.
    allowed = {"db/connection.py", "db/aio.py", "db/migrate.py", "db/preflight.py"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("commit", "rollback"):
                assert name(path) in allowed, f"{name(path)}:{node.lineno} calls {node.attr}"


def test_tasks_are_shared_and_named_for_their_place():
    """A task's name is in rows of the ledger: it says where the task is, and is not derived from where it was."""
    found = our_tasks()
    assert {RUN_TASK, "tasks.alerts.evaluate", "tasks.maintenance.tidy"} <= set(found)
    assert set(found) == OWN_TASKS, "what no schedule may enqueue"
    for task_name, task in found.items():
        assert task_name == f"{task.__module__}.{task.__name__}"
    for path in SOURCES:
        for function in functions(path):
            for decorator in function.decorator_list:
                if "shared_task" in ast.unparse(decorator):
                    assert isinstance(decorator, ast.Call), f"{function.name} has no explicit name"
                    assert "name" in {keyword.arg for keyword in decorator.keywords}, f"{function.name}: no name="
                    assert name(path).startswith("tasks/")
                assert "app.task" not in ast.unparse(decorator), f"{name(path)}: {function.name} belongs to one app"


def our_tasks() -> dict[str, Task]:
    """What an app that knows our modules has."""
    for module in pkgutil.iter_modules(tasks.__path__, "tasks."):
        importlib.import_module(module.name)
    app = Celery("test", set_as_current=False, task_cls="worker.base:OpsTask")
    try:
        with warnings.catch_warnings():
            # An application of the end-to-end tests may have been imported several times in this process.
            warnings.filterwarnings("ignore", r"Task name 'tests\.", DuplicateTaskNameWarning)
            return {task_name: task for task_name, task in app.tasks.items() if task_name.startswith("tasks.")}
    finally:
        app.close()


def test_relations_load_only_where_a_method_says_so():
    configure_mappers()
    for mapper in Base.registry.mappers:
        for relation in mapper.relationships:
            assert relation.lazy == "raise", f"{mapper.class_.__name__}.{relation.key}"


def test_times_are_aware_and_their_columns_say_so():
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, DateTime):
                assert column.type.timezone, column
                assert column.name == "at" or column.name.endswith(("_at", "_until")), column


def test_every_table_of_facts_is_under_audit(sql):
    rows = sql(
        f"""SELECT c.relname, array_agg(t.tgname::text) FILTER (WHERE t.tgname LIKE 'ops\\_audit\\_%')
        FROM pg_class c LEFT JOIN pg_trigger t ON t.tgrelid = c.oid
        WHERE c.relnamespace = '{SCHEMA}'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        GROUP BY 1"""
    )
    found = {table: set(triggers or ()) for table, triggers in rows}
    ours = {table.name for table in Base.metadata.sorted_tables}
    assert set(found) == ours | {"ops_alembic_version"}
    for table in ours:
        assert found[table] == (set() if table in NOT_UNDER_AUDIT else AUDIT_TRIGGERS), table
    assert sql("SELECT count(*) > 3 FROM pg_trigger WHERE tgrelid = 'jobs'::regclass AND tgname LIKE 'ops\\_job%'") == [
        (True,)
    ]


def test_the_platforms_role_may_use_every_table_of_ours(sql):
    """A migration that makes a table names it to `ops_grant`; one that copies the function would forget others'."""
    for table in Base.metadata.sorted_tables:
        rows = sql("SELECT has_table_privilege('ops_app', %s, 'SELECT')", f"{SCHEMA}.{table.name}")
        assert rows == [(True,)], f"{table.name}: sql.grant_tables() is missing in its migration"


def test_every_foreign_key_has_an_index(sql):
    missing = sql(
        f"""SELECT conrelid::regclass::text, conname FROM pg_constraint f
        WHERE contype = 'f' AND connamespace = '{SCHEMA}'::regnamespace AND NOT EXISTS (
          SELECT FROM pg_index i WHERE i.indrelid = f.conrelid AND i.indisvalid
            AND (i.indkey::int2[])[0:cardinality(f.conkey) - 1] @> f.conkey)"""
    )
    assert missing == []


@pytest.fixture
def plan(database):
    """How the server would find rows if it had many: the plan without scanning or sorting a whole table."""
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("SET enable_seqscan = off")
        owner.execute("SET enable_sort = off")
        owner.execute("SET enable_incremental_sort = off")
        yield lambda query: "\n".join(line for (line,) in owner.execute(f"EXPLAIN SELECT * FROM {query}").fetchall())


def test_every_list_and_look_up_is_served_by_an_index(plan):
    for table, condition, order in LISTS:
        found = plan(f"{table} WHERE {condition} ORDER BY {order} DESC LIMIT 50")
        assert "Index Scan Backward" in found, f"{table} by {condition}: {found}"
        # With two columns either will do: a table without rows does not tell which index finds fewer.
        columns = [part.split(" ")[0] for part in condition.split(" AND ")]
        served = any(f"Index Cond: (({each}" in found or f"Index Cond: ({each}" in found for each in columns)
        assert condition == "true" or served, found
        assert "Sort" not in found
    for table, condition in LOOK_UPS:
        found = plan(f"{table} WHERE {condition}")
        assert "Index Cond" in found, f"{table} by {condition}: {found}"
    for table, condition, index in FEW:
        found = plan(f"{table} WHERE {condition}")
        assert index in found, f"{table} by {condition}: {found}"


def test_everything_of_ours_is_named_by_the_convention(sql):
    rows = sql(
        f"""SELECT conname, conrelid::regclass::text, contype FROM pg_constraint
        WHERE connamespace = '{SCHEMA}'::regnamespace AND contype IN ('c', 'f', 'p', 'u')
          AND conrelid::regclass::text NOT LIKE ALL ('{{audit\\\\_logs\\\\_%,check\\\\_results\\\\_%}}')
          AND conrelid::regclass::text <> 'ops_alembic_version'"""
    )
    prefix = {"c": "ck", "f": "fk", "p": "pk", "u": "uq"}
    for constraint, table, kind in rows:
        assert constraint.startswith(f"{prefix[kind]}_{table}"), (table, constraint)
