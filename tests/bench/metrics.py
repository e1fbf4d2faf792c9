"""One scrape of `/metrics`, by how much there is: BENCH_JOBS (a million) and BENCH_AUDIT_ROWS (a million) rows."""

from __future__ import annotations

import os
from statistics import median

from db.connection import get_db_session
from db.services import metrics as service
from tests.bench.report import Report
from tests.bench.servers import fresh_database
from tests.bench.trail import ROWS, fill, timed
from tests.conftest import Database
from tests.e2e.platform import Platform
from worker.serve import metrics
from worker.servers import OWNER_ROLE

JOBS = int(os.environ.get("BENCH_JOBS", "1000000"))
SMALL = 10_000
SCRAPES = 15


def scraping(bench: Platform, report: Report) -> None:
    """The time of a scrape must not grow with what has ended; with what waits only as an index does."""
    report.section(f"a scrape of /metrics, at {JOBS:,} jobs and {ROWS:,} entries")
    with fresh_database(bench.stack, "metrics") as database:
        _fill(database, 0, SMALL)
        small = _scrape()
        _fill(database, SMALL, JOBS)
        with database.connect(OWNER_ROLE) as owner:
            fill(owner, SMALL, ROWS)
        large = _scrape()
        detail = f"{large * 1000:.1f} ms against {small * 1000:.1f} at {SMALL:,}"
        report.at_most("a scrape at full size, against a small one", large / small, 3.0, detail)
        with database.connect("postgres") as root:
            root.execute("SET session_replication_role = replica")
            root.execute("UPDATE jobs SET state = 'queued', outcome = NULL, finished_at = NULL")
            root.execute("VACUUM ANALYZE jobs")
        report.figure("a scrape while all of these jobs wait", f"{_scrape() * 1000:.1f} ms")
        counted = timed(_count)
        report.figure("counting on", f"{ROWS / counted:,.0f} entries/s")


def _fill(database: Database, first: int, last: int) -> None:
    with database.connect("postgres") as root:
        root.execute("SET session_replication_role = replica")  # rows as they are, without their triggers
        root.execute(
            """INSERT INTO jobs (id, task, queue, state, outcome, attempt, run_at, ring_at, finished_at)
            SELECT gen_random_uuid(), 't', 'q' || n %% 3, 'succeeded', 'ok', 1, now() - interval '1 h', now(), now()
            FROM generate_series(%s::int + 1, %s::int) n""",
            [first, last],
        )
        root.execute("VACUUM ANALYZE jobs")


def _scrape() -> float:
    metrics.render("")
    return median(timed(lambda: metrics.render("")) for _ in range(SCRAPES))


def _count() -> None:
    while True:
        with get_db_session() as session:
            if service.count_next(session) < service.BATCH:
                return
