"""What Prometheus reads is true, named by its conventions, and found without reading all jobs or all of the trail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from db.connection import get_db_session, get_engine
from db.seals import new_pair, seal_keys
from db.service import DatabaseService
from db.services import metrics as service
from tests.bench.entries import FILL
from tests.conftest import Database, settings_from
from tests.worker.serve.conftest import Server
from worker.serve import metrics
from worker.servers import OWNER_ROLE

#: A unit at the end of a name, before what Prometheus puts there.
UNITS = ("_seconds", "_bytes")
ROWS = 30_000


def read(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, then by their labels' values in the order of the labels' names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse(text):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def scrape() -> dict[str, dict[tuple[str, ...], float]]:
    return read(metrics.render("")[0].decode())


def test_every_metric_is_explained_and_named_by_the_conventions(server: Server) -> None:
    answer = server.ask("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(parse(answer.text))
    assert len(families) > 25
    for family in families:
        assert family.documentation, family.name
        assert re.fullmatch(r"ops(_[a-z]+)+", family.name), family.name
        assert not re.search(r"(milli|micro|minutes|hours|days|kilo|mega)", family.name), family.name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), family.name
        if family.type == "histogram":
            assert family.name.endswith(UNITS), family.name
    openmetrics = server.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")


def test_jobs_alerts_and_logins_show(database: Database, sql) -> None:
    sql("SELECT ops_enqueue('t', p_queue => 'checks')")
    sql("SELECT ops_enqueue('t', p_queue => 'checks', p_run_at => now() + interval '1 hour')")
    sql("""INSERT INTO monitoring_alerts (fingerprint, alert_type, severity, title, fired_at)
        VALUES ('x', 'x', 'high', 'x', now())""")
    with get_db_session() as session:
        assert DatabaseService(session).authenticate("nobody", "wrong") is None
    with get_db_session() as session:
        service.count_next(session)
    found = scrape()
    assert found["ops_jobs"]["checks", "queued"] == 2
    assert found["ops_jobs"]["deployments", "queued"] == 0, "a queue in which nothing waits has a series too"
    assert found["ops_jobs_due"]["checks",] == 1
    assert 0 < found["ops_queue_oldest_due_age_seconds"]["checks",] < 60
    assert found["ops_alerts"]["high", "firing"] == 1
    assert found["ops_logins_failed_total"][()] == 1
    assert found["ops_jobs_enqueued_total"]["t",] == 2
    assert found["ops_audit_months_ahead"][()] == 6
    assert found["ops_database_connections_limit"][()] > 10


def test_a_histogram_is_cumulative_and_ends_at_infinity(database: Database, sql) -> None:
    for seconds in (0.01, 0.02, 3, 90_000):
        sql(
            "SELECT ops_audit('job.started', 'job', 'x', NULL, %s::jsonb)",
            f'{{"task": "t", "waited_seconds": {seconds}}}',
        )
    with get_db_session() as session:
        service.count_next(session)
    found = scrape()
    buckets = found["ops_job_wait_seconds_bucket"]
    assert [buckets[le, "t"] for le in ("0.01", "0.05", "0.1", "5.0", "7200.0", "+Inf")] == [1, 2, 2, 3, 3, 4]
    assert found["ops_job_wait_seconds_count"]["t",] == 4
    assert found["ops_job_wait_seconds_sum"]["t",] == pytest.approx(90_003.03)


def test_seals_show_where_their_key_is_known(database: Database, sql) -> None:
    assert "ops_audit_seal_lag_seconds" not in scrape()
    with settings_from({"OPS_AUDIT_SEAL_KEY": new_pair()[0]}):
        sql("SELECT ops_audit('a.thing', 'thing', '1')")
        found = scrape()
    assert found["ops_audit_unsealed_entries"][()] >= 1
    assert found["ops_audit_seal_lag_seconds"][()] >= 0


def test_what_a_worker_says_of_itself_cannot_break_the_page(database: Database, sql) -> None:
    """The row is written by whoever runs the platform."""
    for number, info in enumerate((
        '{"encryption": {"opened": "many", "opened_seconds": null, "failures": true}, "queues": "x"}',
        '{"encryption": [], "queues": [1, null, {"a": "b"}]}',
        '{"encryption": {"opened": 3, "opened_seconds": 0.5}, "queues": ["a\\"b\\\\c\\nd"]}',
    )):  # fmt: skip
        sql(
            "INSERT INTO processes (id, kind, name, host, pid, info, seen_at)"
            " VALUES (%s, 'worker', %s, 'h', 1, %s::jsonb, now())",
            str(number), f"w{number}", info,
        )  # fmt: skip
    found = scrape()
    assert found["ops_encryption_operations_total"]["opened", "w2"] == 3
    assert found["ops_queue_workers"]['a"b\\c\nd',] == 1


@pytest.fixture
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Every statement that this process sends."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("queued", [100, ROWS])
def test_no_statement_reads_all_jobs_or_all_of_the_trail(database: Database, statements, queued: int) -> None:
    """Also in a backlog: when most of a large table waits to run."""
    with database.connect("postgres") as root:
        root.execute("SET session_replication_role = replica")  # rows as they are, without their triggers
        root.execute(
            """INSERT INTO jobs (id, task, queue, state, outcome, attempt, run_at, ring_at, finished_at)
            SELECT gen_random_uuid(), 't', 'q' || n %% 3, CASE WHEN n <= %(q)s THEN 'queued' ELSE 'succeeded' END,
              CASE WHEN n > %(q)s THEN 'ok' END, 1, now() - interval '1 h', now(), CASE WHEN n > %(q)s THEN now() END
            FROM generate_series(1, %(rows)s) n""",
            {"q": queued, "rows": ROWS},
        )
    with database.connect(OWNER_ROLE) as owner:
        owner.execute(FILL, [1, ROWS])
        owner.execute("VACUUM ANALYZE jobs")
        owner.execute("VACUUM ANALYZE audit_logs")
    with settings_from({"OPS_AUDIT_SEAL_KEY": new_pair()[0]}):
        keys = seal_keys()
    with get_db_session(read_only=True) as session:
        snapshot = service.snapshot(session, keys)
    assert sum(row.queued for row in snapshot.queued) == queued
    with get_db_session() as session:
        service.count_next(session)
    plans = {statement: plan(statement, parameters) for statement, parameters in list(statements) if is_read(statement)}
    assert len(plans) > 12
    for statement, found in plans.items():
        # A month to come is empty.
        scanned = re.findall(r"Seq Scan on (?:\w+\.)?(jobs|audit_logs_\w+)", found)
        assert not {"jobs", f"audit_logs_{datetime.now(UTC):%Y_%m}"} & set(scanned), f"{statement}\n{found}"


def is_read(statement: str) -> bool:
    return statement.lstrip().upper().startswith(("SELECT", "WITH"))


def plan(statement: str, parameters: Any) -> str:
    with Session(get_engine()) as session:
        rows = session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters)
        return "\n".join(row[0] for row in rows)


def test_the_docs_have_each_metric_with_its_labels_and_words(database: Database, sql) -> None:
    """The table is what this prints; a difference is a page that lies."""
    rows = []
    with settings_from({"OPS_AUDIT_SEAL_KEY": new_pair()[0]}):
        families = list(metrics.Collector(*metrics.look()).collect())
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {', '.join(family._labelnames)} | {family.documentation} |")
    page = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text("utf-8")
    assert "\n".join(rows) in page, "\n".join(rows)
