"""The audit trail by itself: sealing it beside writers, verifying it, searching it.

BENCH_AUDIT_ROWS is the size to which the trail grows for searching (a million; five take a few minutes).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from db.connection import engine_options
from db.repositories import AuditLogRepository
from db.settings import get_settings
from tests.bench.entries import FILL
from tests.bench.report import Report, percentile
from tests.bench.servers import fresh_database, pgbench
from tests.db.sealed import Trail
from tests.e2e.platform import Platform
from worker.servers import OWNER_ROLE

SMALL = 100_000
ROWS = int(os.environ.get("BENCH_AUDIT_ROWS", "1000000"))
SEALED = min(ROWS, 200_000)
SEARCHES = 200
ROUNDS, WRITE_SECONDS = 8, "3"


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fill(owner: psycopg.Connection, first: int, last: int) -> None:
    for begin in range(first, last, 10_000):
        owner.execute(FILL, [begin, min(begin + 9_999, last)])
    owner.execute("VACUUM ANALYZE audit_logs")


def sealed(bench: Platform, report: Report) -> None:
    """What sealing costs those who write, and how fast a trail is sealed and verified."""
    with fresh_database(bench.stack, "sealed") as database:
        trail = Trail(database, bench.folder / "seals.jsonl")
        report.section("sealing beside writers, and verifying")
        with database.connect(OWNER_ROLE) as owner:
            fill(owner, 1, SEALED)
        (entries,) = trail.ask("SELECT count(*) FROM audit_logs")[0]
        trail.seal()
        size = trail.ask("SELECT pg_total_relation_size('audit_seals')")[0][0]
        report.figure("seals take", f"{size / entries:.1f} bytes per entry")
        reading = timed(lambda: _read(trail))
        seconds = timed(lambda: trail.verify(with_outside=True))
        report.at_least("verifying, rows/s, against 100,000", entries / seconds / 100_000, 1.0, f"{entries} entries")
        detail = f"{entries / seconds:,.0f} entries/s against {entries / reading:,.0f}"
        report.at_least("verifying the trail, against only reading it", reading / seconds, 0.4, detail)
        with database.connect(OWNER_ROLE) as owner:
            _index(owner, report)
        _beside_writers(trail, report)


def _index(owner: psycopg.Connection, report: Report) -> None:
    """What the index that sealing needs costs those who write."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for round_ in range(12):
        indexed = round_ % 2 == 0
        owner.execute("DROP INDEX IF EXISTS ix_audit_logs_xid")
        if indexed:
            owner.execute("CREATE INDEX ix_audit_logs_xid ON audit_logs (xid, id)")
        seconds[indexed].append(timed(lambda: owner.execute(FILL, [1, 5000])))
    owner.execute("CREATE INDEX ix_audit_logs_xid ON audit_logs (xid, id)")
    report.at_most("writing with the index on (xid, id), without", min(seconds[True]) / min(seconds[False]), 1.15, "")


def _beside_writers(trail: Trail, report: Report) -> None:
    """Two writers, in turn with the sealer and without. It looks every second here, not every ten as by its tick."""
    script = trail.outside.with_name("write.sql")
    script.write_text("SELECT ops_audit('thing.done', 'thing', '1');\n")
    trail.seal()
    rates: dict[bool, list[float]] = {True: [], False: []}
    for round_ in range(ROUNDS * 2):
        sealing = round_ % 2 == 1
        stop = threading.Event()
        sealer = threading.Thread(target=_seal_on, args=(trail, stop))
        if sealing:
            sealer.start()
        rates[sealing].append(pgbench(trail.database, script, "-c", "2", "-T", WRITE_SECONDS))
        stop.set()
        if sealing:
            sealer.join()
        trail.seal()
    on, off = median(rates[True]), median(rates[False])
    ratio = median(without / with_ for without, with_ in zip(rates[False], rates[True], strict=True))
    report.at_most("writers: time with the sealer on, against off", ratio, 1.05, f"{on:.0f}/s against {off:.0f}/s")


def _seal_on(trail: Trail, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        trail.seal()


def _read(trail: Trail) -> int:
    with trail.database.connect() as app, app.cursor().copy("COPY (SELECT * FROM audit_logs) TO STDOUT") as copy:
        return sum(len(line) for line in copy)


def search(bench: Platform, report: Report) -> None:
    """The same searches of a small trail and of a large one, in turn: the first page of each."""
    report.section(f"searching the trail, {SEARCHES} searches of each kind, in turn: {ROWS} entries against {SMALL}")
    with ExitStack() as both:
        engines = {}
        for name, rows in (("small", SMALL), ("large", ROWS)):
            database = both.enter_context(fresh_database(bench.stack, f"search_{name}"))
            with database.connect(OWNER_ROLE) as owner:
                fill(owner, 1, rows)
            engines[rows] = create_engine(get_settings().require_database_url(), **engine_options())
            both.callback(engines[rows].dispose)
        for name, asked in ASKED.items():
            times = _search(engines, asked)
            small, large = (percentile(times[rows], 0.95) * 1000 for rows in (SMALL, ROWS))
            middle = " and ".join(f"{percentile(times[rows], 0.5) * 1000:.1f}" for rows in (ROWS, SMALL))
            detail = f"{large:.1f} ms against {small:.1f} ms (p50 {middle})"
            report.at_most(f"by {name}, p95", large / small, 1.5, detail)


#: What people look for, by a number that is another each time.
ASKED: dict[str, Callable[[int], dict[str, Any]]] = {
    "resource": lambda n: {"resource": f"job:{n // 50}"},
    "actor": lambda n: {"actor": f"worker-{n % 20}"},
    "actor and action": lambda n: {"actor": f"worker-{n % 20}", "action": "job.failed"},
    "a value that few entries have": lambda n: {"changed": "version", "to": f"v{n // 10}"},
    "a value that many entries have": lambda n: {"changed": "status", "to": "success"},
    "a value of one in a thousand": lambda n: {"changed": "status", "to": "failed"},
}


def _search(engines: dict[int, Engine], asked: Callable[[int], dict[str, Any]]) -> dict[int, list[float]]:
    numbers = random.Random(7)
    times: dict[int, list[float]] = {rows: [] for rows in engines}
    for _ in range(SEARCHES + 10):
        for rows, engine in engines.items():
            words = asked(numbers.randrange(1, rows))
            with Session(engine) as session:
                times[rows].append(timed(partial(AuditLogRepository(session).search, **words)))
    return {rows: each[10:] for rows, each in times.items()}
