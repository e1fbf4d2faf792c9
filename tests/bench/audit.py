"""The audit trail by itself, at a million entries (AUDIT_ROWS): `python -m tests.bench.audit`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from db.connection import get_db_session
from db.repositories import AuditLogRepository
from tests.bench.report import Report, percentile
from tests.conftest import Database, settings_from
from tests.db.sealed import Trail
from worker.devstack import Stack
from worker.servers import DATABASE, OWNER_ROLE

ROWS = int(os.environ.get("AUDIT_ROWS", "1000000"))
WRITE = """INSERT INTO audit_logs (action, resource_type, resource_id, actor_type, actor, actor_id, client, task_id,
    changes, details)
  SELECT (ARRAY['deployment.updated', 'job.succeeded', 'job.failed', 'alert.created', 'secret.opened'])[1 + n %% 5],
    (ARRAY['deployment', 'job', 'job', 'alert', 'secret'])[1 + n %% 5], (n / 5)::text, 'worker', 'worker-' || n %% 20,
    n %% 50, 'ops@host', md5((n / 4)::text)::uuid,
    jsonb_build_object('status', jsonb_build_array('running', CASE WHEN n %% 997 = 0 THEN 'failed' ELSE 'success' END),
      'version', jsonb_build_array(NULL, 'v' || n)),
    jsonb_build_object('name', 'aws/key-' || n %% 500, 'deployment_id', n, 'attempt', 1)
  FROM generate_series(%s::int, %s::int) n"""


@contextmanager
def trail() -> Iterator[Trail]:
    """A trail on a server of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ops-bench-"))
    stack = Stack(folder / "stack")
    try:
        stack.start()
        database = Database(DATABASE, stack)
        with settings_from({"DATABASE_URL": database.url, "OPS_DATABASE_OWNER_URL": database.owner_url}):
            from db import migrate

            migrate.upgrade()
            yield Trail(database, folder / "seals.jsonl")
    finally:
        stack.delete()
        shutil.rmtree(folder, ignore_errors=True)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def writing(trail: Trail, report: Report) -> None:
    """What the index that sealing needs costs those who write."""
    report.section("writing entries, one by one and in bulk, with and without the index on (xid, id)")
    seconds: dict[tuple[bool, str], list[float]] = {}
    with trail.database.connect(OWNER_ROLE) as owner:

        def bulk() -> object:
            return owner.execute(WRITE, [1, 5000])

        def single() -> object:
            return [owner.execute("SELECT ops_audit('x', 'x', '1')") for _ in range(300)]

        for round_ in range(16):
            indexed = round_ % 2 == 0
            owner.execute("DROP INDEX IF EXISTS ix_audit_logs_xid")
            if indexed:
                owner.execute("CREATE INDEX ix_audit_logs_xid ON audit_logs (xid, id)")
            seconds.setdefault((indexed, "in bulk"), []).append(timed(bulk))
            seconds.setdefault((indexed, "one by one"), []).append(timed(single))
        owner.execute("DROP INDEX IF EXISTS ix_audit_logs_xid")
        owner.execute("CREATE INDEX ix_audit_logs_xid ON audit_logs (xid, id)")
    for how in ("one by one", "in bulk"):
        with_, without = min(seconds[True, how]), min(seconds[False, how])
        report.at_most(f"writing {how}: with the index, against without", with_ / without, 1.15, "")


def fill(trail: Trail) -> None:
    with trail.database.connect(OWNER_ROLE) as owner:
        for first in range(1, ROWS, 2000):
            owner.execute(WRITE, [first, min(first + 1999, ROWS)])
        owner.execute("VACUUM ANALYZE audit_logs")


def sealing(trail: Trail, report: Report) -> None:
    report.section(f"{ROWS} entries")
    (count,) = trail.ask("SELECT count(*) FROM audit_logs")[0]
    seconds = timed(trail.seal)
    report.figure("sealed", f"{count / seconds:,.0f} entries/s")
    size = trail.ask("SELECT pg_total_relation_size('audit_seals')")[0][0]
    report.figure("seals take", f"{size / count:.1f} bytes per entry")
    reading = timed(lambda: read(trail))
    seconds = timed(lambda: trail.verify(with_outside=True))
    detail = f"{count / seconds:,.0f} entries/s against {count / reading:,.0f}"
    report.at_least("verifying the trail, against only reading it", reading / seconds, 0.4, detail)


def read(trail: Trail) -> int:
    with trail.database.connect() as app, app.cursor().copy("COPY (SELECT * FROM audit_logs) TO STDOUT") as copy:
        return sum(len(line) for line in copy)


def searching(trail: Trail, report: Report) -> None:
    report.section("searching, the first page and one far behind, ms")
    for words in (
        {"resource": "deployment:42"}, {"actor": "worker-7"}, {"action": "job.failed"}, {"action": "job.*"},
        {"changed": "status", "to": "failed"}, {"changed": "status"}, {"changed": "nothing"}, {"actor": "nobody"},
        {"secret": "aws/key-7"}, {"actor": "worker-7", "action": "job.failed"},
        {"changed": "status", "to": "failed", "actor": "worker-7"},
    ):  # fmt: skip
        for before in (None, ROWS // 3):
            times = []
            for _ in range(5):
                with get_db_session() as session:
                    search = partial(AuditLogRepository(session).search, **words, before=before)
                    times.append(timed(search))
            name = ", ".join(f"{key}={value}" for key, value in words.items())
            report.at_most(f"{name}{' (far)' if before else ''}, p50", percentile(times, 0.5) * 1000, 50, "")


def main() -> int:
    report = Report()
    with trail() as made:
        writing(made, report)
        fill(made)
        sealing(made, report)
        searching(made, report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
