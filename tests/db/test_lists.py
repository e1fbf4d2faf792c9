"""Every list reads about as much as it answers, however many rows there are: the plans at a million rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from db.connection import get_db_session, get_engine
from db.repositories import (
    APIKeyRepository,
    ApplicationRepository,
    AuditLogRepository,
    DeploymentLogRepository,
    DeploymentRepository,
    InfrastructureRepository,
    JobRepository,
    LoginLimitRepository,
    MonitoringAlertRepository,
    StatsRepository,
    UserRepository,
)
from tests.conftest import Database

ROWS = 1_000_000
#: More than a page and what belongs to it, and far less than a table.
READ_AT_MOST = 2_500

#: Rows as generate_series makes them: n from 1 on. Triggers and foreign keys sleep meanwhile.
LOADS = {
    "users": "(username, email) SELECT 'user' || n, 'user' || n || '@example.org'",
    "api_keys": "(user_id, service_name, key_name, encrypted_value) SELECT n / 10, 'aws', 'key' || n, 'v1:k:x'",
    "applications": "(name) SELECT 'app' || n",
    "infrastructure": "(name, owner_id) SELECT 'place' || n, n / 10",
    "deployments": """(user_id, application_id, infrastructure_id, version, status, finished_at, error_message)
        SELECT CASE WHEN n % 2 = 0 THEN 1 ELSE n / 100 END, n % 1000, n % 7, 'v1', s.status,
          CASE WHEN s.status NOT IN ('pending', 'running') THEN now() - (:rows - n) * interval '1 second' END,
          CASE WHEN s.status IN ('failed', 'error') THEN 'no' END
        FROM (SELECT n, CASE WHEN n = 4242 THEN 'error' WHEN n = 777777 THEN 'running' WHEN n % 500 = 0 THEN 'failed'
          ELSE 'success' END AS status FROM generate_series(1, :rows) n) s""",
    "deployment_logs": "(deployment_id, attempt, stream, content) SELECT n / 1000, 1, 'stdout', 'line'",
    "jobs": """(id, task, queue, state, outcome, finished_at)
        SELECT gen_random_uuid(), CASE WHEN n % 1000 = 0 THEN 'rare' ELSE 'often' END, 'q', 'succeeded', 'ok', now()""",
    "monitoring_alerts": """(fingerprint, alert_type, severity, status, title, application_id, infrastructure_id,
        fired_at, resolved_at) SELECT 'f' || n, 'deployment_failed', 'low',
        CASE WHEN n % 10000 = 0 THEN 'firing' ELSE 'resolved' END, 't', n % 1000, n % 7, now(),
        CASE WHEN n % 10000 = 0 THEN NULL ELSE now() END""",
    "audit_logs": """(action, resource_type, resource_id, actor_type, actor_id, actor, task_id, changes, at)
        SELECT CASE WHEN n % 1000 = 0 THEN 'user.login_failed' ELSE 'deployment.updated' END, 'deployment', n / 10,
          'user', n % 1000, 'user' || n % 1000, NULL,
          CASE WHEN n % 5000 = 0 THEN '{"status": ["running", "failed"]}'::jsonb END,
          date_trunc('month', now()) + n * interval '1 millisecond'""",
    "login_limits": "(key, refills_at) SELECT 'pair:' || n, now() - n * interval '1 millisecond'",
}  # fmt: skip

#: What is asked of each table, in the words of its repository.
LISTS: dict[str, list[Callable[[Session], Any]]] = {
    "users": [
        lambda s: UserRepository(s).list_(before=500_000),
        lambda s: UserRepository(s).page(number=20),
        lambda s: UserRepository(s).get_by_username("USER4711"),
        lambda s: UserRepository(s).get_by_email("user4711@example.org"),
        lambda s: UserRepository(s).get_credentials("user4711"),
    ],
    "api_keys": [
        lambda s: APIKeyRepository(s).list_with_owners(before=500_000),
        lambda s: APIKeyRepository(s).get_user_keys(4711),
        lambda s: APIKeyRepository(s).get_by_name(4711, "aws", "key47111"),
    ],
    "applications": [
        lambda s: ApplicationRepository(s).list_(before=500_000),
        lambda s: ApplicationRepository(s).get_by_name("app4711"),
    ],
    "infrastructure": [
        lambda s: InfrastructureRepository(s).list_(),
        lambda s: InfrastructureRepository(s).get_by_name("place4711"),
        lambda s: InfrastructureRepository(s).get_user_infrastructure(4711),
    ],
    "deployments": [
        lambda s: DeploymentRepository(s).list_with_names(before=500_000),
        lambda s: DeploymentRepository(s).get_user_deployments(1),
        lambda s: DeploymentRepository(s).get_user_deployments(1, "error"),
        lambda s: DeploymentRepository(s).get_user_deployments(1, "running"),
        lambda s: DeploymentRepository(s).get_user_deployments(4711, "success"),
        lambda s: DeploymentRepository(s).search(status="running"),
        lambda s: DeploymentRepository(s).search(status="success", before=900_000),
        lambda s: DeploymentRepository(s).search(application_id=4),
        lambda s: DeploymentRepository(s).search(application_id=4, infrastructure_id=4),
        lambda s: DeploymentRepository(s).search(infrastructure_id=4),
        lambda s: DeploymentRepository(s).get_by_job(UUID(int=0)),
        lambda s: StatsRepository(s).ended_badly(),
    ],
    "deployment_logs": [lambda s: DeploymentLogRepository(s).after(500, 500_100)],
    "jobs": [
        lambda s: JobRepository(s).list_(before=500_000),
        lambda s: JobRepository(s).list_(state="failed"),
        lambda s: JobRepository(s).list_(state="succeeded"),
        lambda s: JobRepository(s).list_(task="rare"),
        lambda s: StatsRepository(s).queues(),
    ],
    "monitoring_alerts": [
        lambda s: MonitoringAlertRepository(s).search(),
        lambda s: MonitoringAlertRepository(s).search(status="firing"),
        lambda s: MonitoringAlertRepository(s).search(application_id=4),
        lambda s: MonitoringAlertRepository(s).search(infrastructure_id=4),
        lambda s: MonitoringAlertRepository(s).get_open("f20000"),
    ],
    "audit_logs": [
        lambda s: AuditLogRepository(s).search(before=500_000),
        lambda s: AuditLogRepository(s).search(resource="deployment:4711"),
        lambda s: AuditLogRepository(s).search(actor="user7"),
        lambda s: AuditLogRepository(s).search(action="user.login_failed"),
        lambda s: AuditLogRepository(s).search(task_id=UUID(int=0)),
        lambda s: AuditLogRepository(s).search(changed="status", to="failed"),
        lambda s: AuditLogRepository(s).get_user_activity(7),
    ],
    "login_limits": [
        lambda s: LoginLimitRepository(s).list_(),
        lambda s: LoginLimitRepository(s).is_known("pair:4711"),
        lambda s: LoginLimitRepository(s).remove_refilled(500),
    ],
}


def load(database: Database, table: str, rows: int = ROWS) -> None:
    """Fill a table with rows, as fast as it goes."""
    what = LOADS[table].replace(":rows", str(rows))
    source = "" if "generate_series" in what else f" FROM generate_series(1, {rows}) n"
    with database.connect("postgres") as root:
        root.execute("SET session_replication_role = replica")
        root.execute("SET maintenance_work_mem = '256MB'")
        root.execute(f"INSERT INTO {table} {what}{source}")
        root.execute(f"VACUUM ANALYZE {table}")


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is sent to the database meanwhile."""
    sent: list[tuple[str, Any]] = []

    def note(_connection, _cursor, statement, parameters, _context, _many) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH", "DELETE")):
            sent.append((statement, parameters))

    event.listen(get_engine(), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(get_engine(), "before_cursor_execute", note)


def read(node: dict[str, Any]) -> float:
    """How many rows the scans of a plan have looked at."""
    own = 0.0
    if "Relation Name" in node:
        looked = (
            node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        )
        own = looked * node["Actual Loops"]
    return own + sum(read(child) for child in node.get("Plans", ()))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("table", LISTS)
def test_no_list_reads_more_than_it_answers_at_a_million_rows(database: Database, table: str):
    load(database, table)
    for ask in LISTS[table]:
        with statements() as sent, get_db_session() as session:
            ask(session)
            session.rollback()
        assert sent
        with database.connect("postgres") as root:
            for statement, parameters in sent:
                (plan,) = root.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).fetchone()
                looked_at = read(plan[0]["Plan"])
                assert looked_at <= READ_AT_MOST, f"{looked_at} rows for {statement} {parameters}: {plan[0]['Plan']}"


def test_the_loads_fit_their_tables(database: Database):
    for table in LOADS:
        load(database, table, 100)
    assert set(LOADS) == set(LISTS)
    with get_db_session() as session:
        for ask in (ask for asked in LISTS.values() for ask in asked):
            ask(session)
