"""The ledger under fire: many processes, doorbells that get lost or doubled, deaths, stalls, cancels, cut connections.

Every process here talks to PostgreSQL through its own :class:`db.ledger.Ledger`, as the platform's workers do. The
broker is a pipe of 16-byte ids that forgets what does not fit. A worker that "dies" forgets what it held and takes the
next doorbell as a new worker would. What took effect is noted outside of the database, in the process's own memory, and
compared with the tables at the end.

By hand, for figures: ``python -m tests.chaos --jobs 3000 --keys 8``, or with ``--faults``.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from uuid import UUID

import psycopg

from tests.chaos.crew import Channel, Place, act
from tests.chaos.plan import PIPE_BYTES, QUEUES, START_SECONDS, TASK, Order, Plan, Report


def run(plan: Plan, conninfo: str, schema: str) -> Report:
    """Enqueue, let the crew work until everything has ended, and collect what the tables and the processes say."""
    dice = random.Random(plan.seed)
    orders = {order.id: order for order in _orders(plan, dice)}
    report = Report(plan, orders)
    cancelled = dice.sample(list(orders), len(orders) // 20) if plan.faults else []
    with (
        psycopg.connect(conninfo, autocommit=True, options=f"-c search_path={schema}") as own,
        _crew(plan, conninfo, schema, cancelled, report) as channel,
    ):
        started = time.monotonic()
        with own.transaction():
            _enqueue(own, plan, list(orders.values()))
        report.enqueue_seconds = time.monotonic() - started
        started = time.monotonic()
        for job_id in orders:
            if not (plan.faults and dice.random() < 0.05):  # else this caller dies before it rings
                channel.ring(job_id)
        report.left = _wait_for_the_end(own, started + plan.give_up_seconds)
        report.seconds = time.monotonic() - started
    with psycopg.connect(conninfo, options=f"-c search_path={schema}") as own:
        _read_tables(own, report)
    return report


def _orders(plan: Plan, dice: random.Random) -> Iterator[Order]:
    for _ in range(plan.jobs):
        key = f"key-{dice.randrange(plan.keys)}" if plan.keys and dice.random() < plan.keyed else None
        yield Order(
            id=UUID(int=dice.getrandbits(128), version=4),
            queue=dice.choice(QUEUES[: plan.queues]),
            lock_key=key,
            idempotent=dice.random() < 0.5,
            priority=dice.choice((3, 5, 5, 5)),
        )


def _enqueue(own: psycopg.Connection, plan: Plan, orders: Sequence[Order]) -> None:
    with own.cursor() as cursor:
        cursor.executemany(
            """SELECT ops_enqueue(p_task => %s, p_id => %s, p_queue => %s, p_lock_key => %s, p_idempotent => %s,
            p_priority => %s, p_lease_seconds => %s, p_rung => true)""",
            [(TASK, o.id, o.queue, o.lock_key, o.idempotent, o.priority, plan.lease_seconds) for o in orders],
        )


def _wait_for_the_end(own: psycopg.Connection, end: float) -> int:
    """How many jobs have not ended when time is up."""
    while True:
        (left,) = own.execute("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone() or (0,)
        if not left or time.monotonic() > end:
            return int(left)
        time.sleep(0.05)


@contextlib.contextmanager
def _crew(plan: Plan, conninfo: str, schema: str, cancelled: Sequence[UUID], report: Report) -> Iterator[Channel]:
    """Start all processes; at the end take in what they saw."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    reader, writer = _pipe()
    graves, digger = _pipe()
    stop = context.Event()
    kinds = ["worker"] * plan.processes + ["relay"]
    kinds += ["canceller"] * bool(cancelled) + ["cutter"] * bool(plan.cut_every)
    ready = context.Barrier(len(kinds) + 1)
    processes, results = [], []
    for number, kind in enumerate(kinds):
        mine, theirs = context.Pipe(duplex=False)
        place = Place(
            plan, conninfo, schema, reader, writer, graves if kind == "relay" else digger, theirs, ready, stop, number
        )
        process = context.Process(target=act, args=(kind, place, cancelled), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        results.append(mine)
    try:
        ready.wait(START_SECONDS)
        yield Channel(reader.fileno(), writer.fileno())
    finally:
        stop.set()
        for result in results:
            counts, errors, effects = result.recv()
            report.counts += counts
            report.errors += errors
            report.effects += effects
        for each in [*processes, reader, writer, graves, digger, *results]:
            each.join() if hasattr(each, "join") else each.close()


def _pipe() -> tuple[Connection, Connection]:
    reader, writer = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return Connection(reader, writable=False), Connection(writer, readable=False)


def _read_tables(own: psycopg.Connection, report: Report) -> None:
    rows = own.execute("SELECT id, state, outcome, attempt, error, began_at IS NOT NULL AS begun FROM jobs")
    names = [column.name for column in rows.description or ()]
    report.jobs = [dict(zip(names, row, strict=True)) for row in rows]
    report.trail = [
        (UUID(key), action.removeprefix("job."), details or {})
        for key, action, details in own.execute(
            "SELECT resource_id, action, details FROM audit_logs WHERE resource_type = 'job' ORDER BY id"
        )
    ]
