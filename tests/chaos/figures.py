"""Figures of the ledger: ``python -m tests.chaos.figures [rates] [sizes] [hammer]``; all where none is named.

``rates``: one connection, one call after the other. ``sizes``: each statement at a hundred thousand due rows, a million
future ones, ten thousand waiters on one key. ``hammer``: sixteen processes without faults. Times are as the caller sees
them; in brackets the CPU time of the server's own process, which other load on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg

from db.ledger import Ledger
from tests.chaos.hammer import run
from tests.chaos.plan import Plan

TASK = "tests.figures"
QUEUE = "figures"
#: What a statement may take at any size, in milliseconds.
LIMITS = {"relay": 20.0, "due_queues": 20.0, "claim": 5.0, "rescue": 20.0}

_FILL = """
INSERT INTO jobs (id, task, queue, lock_key, priority, run_at, ring_at)
SELECT gen_random_uuid(), %(task)s, %(queue)s, %(key)s, (ARRAY[3, 5, 5, 5, 7])[1 + n %% 5],
  clock_timestamp() + %(ahead)s, clock_timestamp() + %(ahead)s
FROM generate_series(1, %(rows)s) n
"""

Call = Callable[[], object]


class Figures:
    """One database, one ledger's connection to it, and the role that owns the tables."""

    def __init__(self, url: str, schema: str, owner: psycopg.Connection) -> None:
        self.ledger = Ledger(url, schema)
        self.owner = owner

    def fill(self, rows: int, *, key: str | None = None, ahead: timedelta = timedelta()) -> None:
        """Rows by the hundred thousand, without an audit entry each."""
        with self._silently():
            self.owner.execute(_FILL, {"task": TASK, "queue": QUEUE, "rows": rows, "key": key, "ahead": ahead})
        self.owner.execute("VACUUM ANALYZE jobs")

    def empty(self) -> None:
        with self._silently():
            self.owner.execute("DELETE FROM jobs")
        self.owner.execute("VACUUM FULL jobs")

    def ids(self, count: int, order: str) -> list[UUID]:
        query = f"SELECT id FROM jobs WHERE state = 'queued' AND run_at <= now() ORDER BY {order} LIMIT %s"
        return [row[0] for row in self.owner.execute(query, [count]).fetchall()]

    def claim(self, job_id: UUID, token: UUID) -> str:
        return self.ledger.claim(job_id, TASK, token, worker="figures", host="figures", holders=["1:1"]).verdict

    def claims(self, ids: Iterable[UUID]) -> list[Call]:
        return [lambda j=job_id: self.claim(j, uuid4()) for job_id in ids]

    def time(self, calls: Iterable[Call]) -> tuple[list[float], list[float]]:
        """Milliseconds of each call, and of the server's process for it."""
        taken, cpu = [], []
        for call in calls:
            before, started = self._cpu(), time.perf_counter()
            call()
            taken.append((time.perf_counter() - started) * 1000)
            cpu.append(self._cpu() - before)
        return taken, cpu

    def show(self, name: str, calls: Iterable[Call]) -> None:
        taken, cpu = self.time(calls)
        limit = LIMITS.get(name.split()[0])
        middle = statistics.median(taken)
        verdict = "" if limit is None else "PASS" if middle <= limit else f"MISS, the limit is {limit:.0f} ms"
        print(
            f"  {name:28} median {middle:7.2f} ms [{statistics.median(cpu):6.2f}]  worst {max(taken):7.2f}  {verdict}",
            flush=True,
        )

    def _silently(self) -> Silence:
        return Silence(self.owner)

    def _cpu(self) -> float:
        """Milliseconds that the server's process has run; 0 where the kernel does not tell."""
        try:
            pid = self.ledger._connect().info.backend_pid
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6
        except OSError:
            return 0.0


class Silence:
    """No triggers on jobs while inside."""

    def __init__(self, owner: psycopg.Connection) -> None:
        self.owner = owner

    def __enter__(self) -> None:
        self.owner.execute("ALTER TABLE jobs DISABLE TRIGGER USER")

    def __exit__(self, *_: object) -> None:
        self.owner.execute("ALTER TABLE jobs ENABLE TRIGGER USER")


def rates(figures: Figures, jobs: int = 2000) -> None:
    for keys in (0, 40):
        print(f"one connection, {jobs} jobs, {keys or 'no'} keys:")
        figures.empty()
        figures.fill(jobs, key="key" if keys else None)
        with Silence(figures.owner):
            figures.owner.execute("UPDATE jobs SET lock_key = lock_key || seq %% %s", [max(keys, 1)])
        figures.owner.execute("VACUUM ANALYZE jobs")
        taken: dict[str, list[float]] = {"claim": [], "begin": [], "heartbeat": [], "finish": []}
        cpu: dict[str, list[float]] = {name: [] for name in taken}
        for job_id in figures.ids(jobs, "priority, seq"):
            for name, call in life(figures, job_id).items():
                one, two = figures.time([call])
                taken[name] += one
                cpu[name] += two
        for name, each in taken.items():
            print(f"  {name:10} {1000 / statistics.mean(each):6.0f}/s [{statistics.median(cpu[name]):5.2f} ms]")
    heartbeats(figures)


def life(figures: Figures, job_id: UUID) -> dict[str, Call]:
    token, ledger = uuid4(), figures.ledger
    return {
        "claim": lambda: figures.claim(job_id, token),
        "begin": lambda: ledger.begin(job_id, 1, token, ["1:1", "2:2"]),
        "heartbeat": lambda: ledger.heartbeat(job_id, 1, token),
        "finish": lambda: ledger.finish(job_id, 1, token, "ok"),
    }


def heartbeats(figures: Figures, beats: int = 3000) -> None:
    """How many stay within their page (HOT): an index on a lease column would make it none."""
    figures.empty()
    figures.fill(200)
    held = [(job_id, uuid4()) for job_id in figures.ids(50, "seq")]
    for job_id, token in held:
        figures.claim(job_id, token)
    before = updates(figures)
    figures.time([lambda j=j, t=t: figures.ledger.heartbeat(j, 1, t) for j, t in held * (beats // len(held))])
    after = updates(figures)
    print(f"  {after[1] - before[1]} of {after[0] - before[0]} heartbeats were HOT", flush=True)


def updates(figures: Figures) -> tuple[int, int]:
    figures.ledger.close()  # a session tells its figures when it ends
    time.sleep(0.5)
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'jobs'::regclass"
    row = figures.owner.execute(query).fetchone()
    assert row is not None
    return row[0], row[1]


def sizes(figures: Figures) -> None:
    figures.empty()
    print("100,000 due rows:")
    figures.fill(100_000)
    measure(figures)
    print("100,000 due and 1,000,000 future rows:")
    figures.fill(1_000_000, ahead=timedelta(hours=1))
    measure(figures)
    print("the same, and 10,000 waiters on one key:")
    figures.fill(10_000, key="one key")
    measure(figures)
    waiters(figures)
    print("1,000 leases that ran out:")
    losses(figures)


def measure(figures: Figures) -> None:
    ledger = figures.ledger
    figures.show("due_queues", [ledger.due_queues] * 20)
    figures.show("relay, room for 200", [lambda: ledger.relay(QUEUE, 200)] * 20)
    figures.show("relay, room for 10", [lambda: ledger.relay(QUEUE, 10)] * 20)
    figures.show("claim, no key", figures.claims(figures.ids(100, "lock_key NULLS FIRST, random()")))
    figures.show("rescue, nothing to do", [ledger.rescue] * 20)


def waiters(figures: Figures) -> None:
    ledger, token = figures.ledger, uuid4()
    query = "SELECT id FROM jobs WHERE lock_key = 'one key' AND state = 'queued' ORDER BY priority, seq LIMIT 5000"
    ids = [row[0] for row in figures.owner.execute(query).fetchall()]
    figures.show("claim, not the head", figures.claims(ids[1000:1100]))
    figures.show("claim, the head", [lambda: figures.claim(ids[0], token)])
    figures.show("claim, the key is busy", figures.claims(ids[1:101]))
    figures.show("relay, blocked rows", [lambda: ledger.relay(QUEUE, 200)] * 20)
    figures.show("cancel of a waiter", [lambda j=j: ledger.cancel(j) for j in ids[2000:2050]])
    figures.show("finish, hand over", [lambda: ledger.finish(ids[0], 1, token, "ok")])


def losses(figures: Figures) -> None:
    for call in figures.claims(figures.ids(1000, "lock_key NULLS FIRST, random()")):
        call()
    figures.owner.execute("UPDATE jobs SET lease_until = now() - interval '1 min' WHERE state = 'running'")
    figures.show("first look, marks them all", [figures.ledger.rescue])
    figures.owner.execute("UPDATE jobs SET suspect_at = now() - interval '5 s' WHERE state = 'running'")
    figures.show("second look, 100 at a time", [figures.ledger.rescue] * 10)


def hammer(url: str, schema: str, owner: psycopg.Connection, postmaster: int, jobs: int = 3000) -> None:
    for keys in (0, 8, 40):
        with Silence(owner):
            owner.execute("DELETE FROM jobs")
        owner.execute("VACUUM jobs")
        before = _children(postmaster)
        report = run(Plan(jobs=jobs, keys=keys, queues=1, faults=False, lease_seconds=9.0), url, schema)
        time.sleep(0.5)
        cpu = (_children(postmaster) - before) / jobs * 1e6
        print(
            f"hammer, {keys:2} keys: {jobs / report.seconds:5.0f} jobs/s "
            f"[{cpu:4.0f} us CPU of the server a job, enqueueing included]; "
            f"enqueued at {jobs / report.enqueue_seconds:.0f}/s",
            flush=True,
        )


def _children(pid: int) -> float:
    """CPU seconds of a process's children that have ended."""
    fields: Sequence[str] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    # Here and not above: the hammer's processes import this module, and need none of it.
    from tests.chaos.standalone import migrated_database
    from tests.conftest import SCHEMA

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="rates, sizes, hammer")
    parts = parser.parse_args().part or ["rates", "sizes", "hammer"]
    with migrated_database() as database, database.connect("ops_owner") as owner:
        if "rates" in parts:
            rates(Figures(database.url, SCHEMA, owner))
        if "sizes" in parts:
            sizes(Figures(database.url, SCHEMA, owner))
        if "hammer" in parts:
            hammer(database.url, SCHEMA, owner, database.stack.postgres.pid or 0)


if __name__ == "__main__":
    main()
