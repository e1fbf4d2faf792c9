"""The scheduler alone: many checks that are due, and a probe that answers at once.

BENCH_SCHEDULED=100000 makes it as many as it must hold; by default there are fewer, so that it takes some seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from db.connection import get_db_session
from db.probes import Seen
from db.repositories.checks import _CLAIM
from db.services import check_runs, users
from db.states import CheckStatus
from tests.bench.report import Report
from tests.bench.servers import fresh_database
from tests.conftest import Database
from tests.e2e.platform import Platform

CHECKS = int(os.environ.get("BENCH_SCHEDULED", "20000"))
#: What it must hold.
AIM, INTERVAL_SECONDS = 100_000, 60
_UP = Seen(CheckStatus.UP, 0.01, None, {"status": 200})


def alone(bench: Platform, report: Report) -> None:
    """Claim and record all checks, twice: the second time they are known, and it is as it always is."""
    report.section(
        f"the scheduler alone, one process: {CHECKS:,} checks that are all due, a probe that answers at once"
    )
    with fresh_database(bench.stack, "scheduled") as database:
        _fill(database)
        _round()
        with database.connect("postgres") as root:
            root.execute("VACUUM ANALYZE check_states, check_results, monitoring_checks")
        before = _sizes(database)
        claiming, whole = _round()
        _say_rates(report, claiming, whole)
        _say_growth(report, before, _sizes(database))
        scanned = sorted(_scans(_plan()) & {"check_states", "check_results", "monitoring_checks"})
        report.at_most("tables that the claim reads from end to end", len(scanned), 0, ", ".join(scanned))


def _say_rates(report: Report, claiming: float, whole: float) -> None:
    needed = AIM / INTERVAL_SECONDS
    said = f"{AIM:,} at {INTERVAL_SECONDS} s are {needed:,.0f} a second"
    report.at_least("claimed a second / needed", CHECKS / claiming / needed, 1.0, f"{CHECKS / claiming:,.0f}; {said}")
    report.at_least("claimed and recorded / needed", CHECKS / whole / needed, 1.0, f"{CHECKS / whole:,.0f} a second")


def _say_growth(report: Report, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    for table in ("check_results", "audit_logs"):
        each = (after[table] - before[table]) / CHECKS
        a_day = each * AIM * 86400 / INTERVAL_SECONDS / 1e6
        report.figure(f"{table}: at {AIM:,} checks", f"{a_day:,.0f} MB a day ({each:.0f} bytes a run)")
    grown = after["check_states"] / max(before["check_states"], 1)
    report.figure(
        "check_states after a round without vacuum", f"{after['check_states'] / 1e6:.1f} MB, {grown:.2f} of before"
    )


def _fill(database: Database) -> None:
    with get_db_session() as session:
        owner = users.create(session, username="bench", email="bench@example.org").id
    with database.connect("postgres") as root:
        root.execute("SET session_replication_role = replica")  # without the audit's triggers
        root.execute(
            """INSERT INTO monitoring_checks (name, kind, config, labels, owner_id, interval_seconds)
            SELECT 'c' || n, 'http', '{"url": "http://example.org/"}', '{}', %s, %s
            FROM generate_series(1, %s::int) n""",
            [owner, 86400, CHECKS],  # so rarely that none is due again within a round
        )
        root.execute("INSERT INTO check_states (check_id, next_run_at) SELECT id, now() FROM monitoring_checks")
        root.execute(
            "INSERT INTO check_intervals (check_id, state, started_at)"
            " SELECT id, 'unknown', now() FROM monitoring_checks"
        )
        root.execute("VACUUM ANALYZE monitoring_checks, check_states, check_intervals")


def _round() -> tuple[float, float]:
    """Seconds for claiming all, and for claiming and recording them."""
    _make_due()
    claiming = recording = 0.0
    recorded = 0
    while recorded < CHECKS:
        start = time.monotonic()
        with get_db_session() as session:
            batches = check_runs.claim(session)
        claiming += time.monotonic() - start
        start = time.monotonic()
        recorded += sum(_record(batch, ids) for batch, ids in batches.items())
        recording += time.monotonic() - start
        assert batches, f"{recorded} of {CHECKS} were recorded, and nothing is due"
    return claiming, claiming + recording


def _make_due() -> None:
    with get_db_session() as session:
        session.execute(text("UPDATE check_states SET next_run_at = statement_timestamp()"))


def _record(batch: UUID, ids: list[int]) -> int:
    with get_db_session() as session:
        runs = check_runs.load(session, batch_id=batch, check_ids=ids)
    with get_db_session() as session:
        counts = check_runs.record(session, batch_id=batch, runs=runs, seen=dict.fromkeys(ids, _UP))
    return int(counts["up"])


def _sizes(database: Database) -> dict[str, int]:
    """Bytes of tables with their indexes and partitions."""
    with database.connect("postgres") as root:
        rows = root.execute(
            """SELECT p.relname, sum(pg_total_relation_size(t.relid))::bigint
            FROM pg_class p, pg_partition_tree(p.oid) t
            WHERE p.oid IN ('check_results'::regclass, 'audit_logs'::regclass) GROUP BY 1
            UNION ALL SELECT 'check_states', pg_total_relation_size('check_states')"""
        ).fetchall()
    return dict(rows)


def _plan() -> dict[str, Any]:
    """The claim's plan, as the planner makes it for these tables."""
    ids = {name: uuid4() for name in ("quick", "slow", "slowest")}
    with get_db_session() as session:
        statement = text(f"EXPLAIN (FORMAT JSON) {_CLAIM.text}")
        found = session.scalar(statement, {"limit": check_runs.BATCH, "expires": check_runs.EXPIRES, **ids})
    made: dict[str, Any] = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return made


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)


def _scans(plan: Mapping[str, Any]) -> set[str]:
    return {node["Relation Name"] for node in _nodes(plan) if node["Node Type"] == "Seq Scan"}
