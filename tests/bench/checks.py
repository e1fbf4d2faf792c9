"""HTTP checks: what one costs with all of its database writes, PostgreSQL's own time included, beside other probers;
and the claims alone."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import text

from db.connection import get_db_session
from db.service import DatabaseService
from db.services import check_runs
from tasks import checks as tasks_checks
from tests.bench import probers
from tests.bench.report import Report
from tests.bench.servers import fresh_database
from tests.bench.target import Target, target
from tests.conftest import settings_from
from tests.e2e.platform import Platform

CHECKS = int(os.environ.get("BENCH_CHECKS", "2000"))
#: Every check runs so often while it is measured.
ROUNDS = 3


@dataclass
class Cost:
    """CPU seconds for one check, and checks per second."""

    prober: float
    database: float
    rate: float

    @property
    def whole(self) -> float:
        return self.prober + self.database


def against_others(bench: Platform, report: Report) -> None:
    """Print CPU per check of ours and of others, and the claim rate."""
    warnings.filterwarnings("ignore", message="Unverified HTTPS request")
    with (
        fresh_database(bench.stack, "checks"),
        settings_from({"OPS_PROBE_ALLOW": "127.0.0.1/32"}),
        target(bench.folder) as site,
        probers.celery_worker(bench) as worker,
    ):
        _add(site.url, CHECKS)
        for name, url in (("plain", site.url), ("TLS", site.tls_url)):
            report.section(
                f"checks over {name} HTTP, a fresh connection for each: CPU of one, database writes included"
            )
            _point_at(url)
            _compare(report, _ours(bench), worker, site, url)
        report.section("checks: the scheduler's claims")
        _make_due()
        claimed, seconds = _claims()
        report.figure(f"claims alone, {CHECKS} checks", f"{claimed / seconds:.0f} a second")


def _compare(report: Report, ours: Cost, worker: int, site: Target, url: str) -> None:
    report.figure(
        f"ours, in batches of {check_runs.BATCH}",
        f"{1000 * ours.prober:.3f} ms, and PostgreSQL's {1000 * ours.database:.3f} ms; {ours.rate:.0f} a second",
    )
    report.figure("bare requests, which are no prober", f"{1000 * probers.by_requests(url):.3f} ms")
    others: dict[str, Callable[[], float | None]] = {
        "blackbox exporter": lambda: probers.by_blackbox(url),
        "check_http, a process each": lambda: probers.by_check_http(url),
        "a Celery task each, with requests": lambda: probers.by_celery(worker, site, url),
    }
    for name, measure in others.items():
        theirs = measure()
        if theirs is None:
            report.figure(name, "not installed here")
            continue
        report.at_most(f"ours / {name}", ours.whole / theirs, 1.0, f"{1000 * theirs:.3f} ms")


def _add(url: str, count: int) -> None:
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("bench", "bench@example.org")
        for number in range(count):
            config = {"url": url, "tls_verify": False}
            service.add_check(f"c{number}", "http", user.id, config=config, interval_seconds=3600)


def _point_at(url: str) -> None:
    with get_db_session() as session:
        url_of_all = text(
            "UPDATE monitoring_checks SET config = config || jsonb_build_object('url', CAST(:url AS text))"
        )
        session.execute(url_of_all, {"url": url})


def _make_due() -> None:
    with get_db_session() as session:
        session.execute(text("UPDATE check_states SET next_run_at = now(), scheduled_at = NULL, batch_id = NULL"))


def _ours(bench: Platform) -> Cost:
    """All checks, some rounds; making them due is not counted."""
    prober = database = seconds = 0.0
    runs = 0
    postmaster = bench.stack.postgres.pid
    assert postmaster is not None
    for number in range(ROUNDS + 1):  # the first warms up
        _make_due()
        own, theirs, start = time.process_time(), probers.spent(postmaster), time.monotonic()
        done = 0
        while count := _run_batches():
            done += count
        assert done >= CHECKS, f"{done} of {CHECKS} checks were due"
        if number:
            runs += done
            seconds += time.monotonic() - start
            prober += time.process_time() - own
            database += probers.spent(postmaster) - theirs
    return Cost(prober / runs, database / runs, runs / seconds)


def _run_batches() -> int:
    """One claim and its batches as the tick and a worker do it; how many checks."""
    with get_db_session() as session:
        batches = check_runs.claim(session)
    for batch, ids in batches.items():
        with get_db_session() as session:
            runs = check_runs.load(session, batch_id=batch, check_ids=ids)
        seen = tasks_checks.look(runs)
        assert not any(each.status == "down" for each in seen.values()), "the target is up"
        with get_db_session() as session:
            check_runs.record(session, batch_id=batch, runs=runs, seen=seen)
    return sum(map(len, batches.values()))


def _claims() -> tuple[int, float]:
    claimed, start = 0, time.monotonic()
    while True:
        with get_db_session() as session:
            found = sum(map(len, check_runs.claim(session).values()))
        claimed += found
        if found < check_runs.BATCH:
            return claimed, time.monotonic() - start
