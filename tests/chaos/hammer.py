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
import select
import struct
import termios
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import Any
from uuid import UUID, uuid4

import psycopg

from db.ledger import Bell, Claim, Ledger

TASK = "tests.hammer"
QUEUES = ("hammer-a", "hammer-b")
#: The relay's brake: at most so many doorbells lie in the pipe.
WINDOW = 200
PIPE_BYTES = 1 << 20
TICK_SECONDS = 0.2
GRACE = timedelta(seconds=0.4)
APPLICATION = "hammer worker"
#: How long the crew may take to start.
START_SECONDS = 60.0
#: What a cut connection answers: nothing (a closed socket), or that it was terminated.
CUT = (None, "57P01", "57P02", "57P03", "08006")


@dataclass(frozen=True)
class Plan:
    """What to run. ``keyed`` is the share of jobs with a lock key; ``cut_every`` the seconds between two backends
    that are terminated (0: none); ``queues`` how many queues the jobs are spread over."""

    jobs: int = 600
    processes: int = 16
    keys: int = 12
    keyed: float = 0.7
    queues: int = 2
    faults: bool = True
    cut_every: float = 0.0
    lease_seconds: float = 1.0
    seed: int = 1
    give_up_seconds: float = 100.0


@dataclass(frozen=True, slots=True)
class Order:
    """A job as the hammer knows it, independent of the database."""

    id: UUID
    queue: str
    lock_key: str | None
    idempotent: bool
    priority: int


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect that took place: of which attempt, from when to when (CLOCK_MONOTONIC, shared by all processes)."""

    job: UUID
    attempt: int
    started: float
    ended: float


@dataclass
class Report:
    """What came of a run. ``left``: jobs that had not ended when time was up."""

    plan: Plan
    orders: dict[UUID, Order]
    seconds: float = 0.0
    enqueue_seconds: float = 0.0
    left: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    effects: list[Effect] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    trail: list[tuple[UUID, str, dict[str, Any]]] = field(default_factory=list)


class Channel:
    """Doorbells in memory: any process may ring, any may take; what does not fit is lost."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    def ring(self, job_id: UUID) -> bool:
        try:
            return os.write(self.writer, job_id.bytes) == 16  # so small a write is whole or not at all
        except BlockingIOError:
            return False

    def take(self, seconds: float) -> UUID | None:
        if not select.select([self.reader], [], [], seconds)[0]:
            return None
        try:
            return UUID(bytes=os.read(self.reader, 16))
        except BlockingIOError:
            return None  # another process was quicker

    def depth(self) -> int:
        return int(struct.unpack("i", fcntl.ioctl(self.reader, termios.FIONREAD, b"\0" * 4))[0]) // 16


@dataclass
class Place:
    """What a process needs to take part; handed over when it starts."""

    plan: Plan
    conninfo: str
    schema: str
    reader: Connection
    writer: Connection
    graves: Connection
    results: Connection
    ready: Barrier
    stop: Event
    number: int = 0

    def channel(self) -> Channel:
        return Channel(self.reader.fileno(), self.writer.fileno())


class Member:
    """One process of the crew: a connection, a die, and counters."""

    def __init__(self, place: Place, application_name: str) -> None:
        self.place = place
        self.plan = place.plan
        self.random = random.Random(place.plan.seed * 7919 + place.number)
        self.ledger = Ledger(place.conninfo, place.schema, application_name=application_name)
        self.channel = place.channel()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.effects: list[Effect] = []

    def happens(self, chance: float) -> bool:
        return self.plan.faults and self.random.random() < chance

    def ring(self, bells: Sequence[Bell]) -> None:
        for bell in bells:
            copies = 1
            if self.happens(0.10):
                copies = self.random.choice((0, 2))
                self.counts["bells lost" if copies == 0 else "bells doubled"] += 1
            for _ in range(copies):
                self.counts["bells" if self.channel.ring(bell.id) else "bells that did not fit"] += 1

    def patience(self, error: Exception, tries: int) -> float | None:
        """Repeat what was cut, and remember every error that is none of ours to expect."""
        self.note(error)
        return 0.01 if tries < 200 else None

    def note(self, error: Exception) -> None:
        state = getattr(error, "sqlstate", None)
        if self.plan.cut_every and state in CUT:
            self.counts["calls repeated after a cut"] += 1
        else:
            self.errors[f"{state} {type(error).__name__}: {error}"[:200]] += 1

    def report(self) -> None:
        self.ledger.close()
        self.place.results.send((self.counts, self.errors, self.effects))
        self.place.results.close()


class Worker(Member):
    """Takes doorbells and does what the platform's workers do, in the same order."""

    def run(self) -> None:
        while not self.place.stop.is_set():
            job_id = self.channel.take(0.05)
            if job_id is not None:
                self.answer(job_id)

    def answer(self, job_id: UUID) -> None:
        token, asked_at = uuid4(), time.monotonic()
        claim = self.claim(job_id, token)
        self.counts[f"claim: {claim.verdict}"] += 1
        self.ring(claim.bells)
        if claim.verdict != "run" or self.dies("after its claim", 0.02, token):
            return
        self.stalls("after its claim", 0.01)
        lease_end = asked_at + claim.lease_seconds
        outcome = self.begin(job_id, claim, token)
        if outcome is None:
            if self.dies("after its begin", 0.01, token):
                return
            self.stalls("after its begin", 0.01)
            # As the supervisor does: nothing starts after the end of the lease, counted from before the claim.
            if time.monotonic() < lease_end - 0.1:
                self.take_effect(job_id, claim)
                if self.dies("after its effect", 0.02, token):
                    return
                self.beat(job_id, claim, token)
                outcome = "failed" if self.happens(0.06) else "ok"
            else:
                outcome = "interrupted"
        self.finish(job_id, claim, token, outcome)

    def claim(self, job_id: UUID, token: UUID) -> Claim:
        def once() -> Claim:
            me = f"hammer-{self.place.number}"
            return self.ledger.claim(
                job_id, TASK, token, worker=me, host="hammer", holders=[me], patience=self.patience
            )

        claim = once()
        if claim.verdict == "run" and self.happens(0.05):
            self.counts["claim repeated"] += 1
            again = once()
            if (again.verdict, again.attempt) != ("run", claim.attempt):
                self.errors[f"a repeated claim said {again.verdict}"] += 1
        return claim

    def begin(self, job_id: UUID, claim: Claim, token: UUID) -> str | None:
        """None to go on, else the outcome."""
        answer = ""
        for _ in range(2 if self.happens(0.05) else 1):
            answer = self.ledger.begin(job_id, claim.attempt, token, ["hammer"], patience=self.patience)
        self.counts[f"begin: {answer}"] += 1
        return {"go": None, "cancelled": "cancelled", "lost": "interrupted"}[answer]

    def take_effect(self, job_id: UUID, claim: Claim) -> None:
        started = time.monotonic()
        if self.plan.faults:
            time.sleep(self.random.random() * 0.004)  # long enough for another to step in, if one could
        self.effects.append(Effect(job_id, claim.attempt, started, time.monotonic()))

    def beat(self, job_id: UUID, claim: Claim, token: UUID) -> None:
        if self.happens(0.1):
            try:
                self.counts[f"heartbeat: {self.ledger.heartbeat(job_id, claim.attempt, token)}"] += 1
            except psycopg.Error as error:
                self.note(error)

    def finish(self, job_id: UUID, claim: Claim, token: UUID, outcome: str) -> None:
        def once() -> tuple[str, tuple[Bell, ...]]:
            return self.ledger.finish(
                job_id, claim.attempt, token, outcome, error=None if outcome == "ok" else f"it {outcome}",
                retry_in=timedelta(seconds=self.random.random() * 0.5), patience=self.patience,
            )  # fmt: skip

        state, bells = once()
        self.counts[f"finish: {state}"] += 1
        if state != "late" and self.happens(0.05):
            self.counts["finish repeated"] += 1
            if once()[0] == "late":
                self.errors["a repeated finish was called late"] += 1
        if not self.dies("before it rang the next", 0.05, token):
            self.ring(bells)

    def dies(self, when: str, chance: float, token: UUID) -> bool:
        if not self.happens(chance):
            return False
        self.counts[f"died {when}"] += 1
        if self.random.random() < 0.3:  # seen by somebody of the same host, at once
            os.write(self.place.graves.fileno(), token.bytes)
        return True

    def stalls(self, when: str, chance: float) -> None:
        if self.happens(chance):
            self.counts[f"stalled {when}"] += 1
            time.sleep(self.plan.lease_seconds + 2.5 * GRACE.total_seconds())


class Relay(Member):
    """The timer of the workers' main processes: rescue what died, ring what is due, within the window."""

    def run(self) -> None:
        while not self.place.stop.is_set():
            started = time.monotonic()
            try:
                self.tick()
            except psycopg.Error as error:
                self.note(error)
            self.place.stop.wait(max(0.0, TICK_SECONDS - (time.monotonic() - started)))

    def tick(self) -> None:
        moved, bells = self.ledger.rescue(GRACE, self.graves())
        for row in moved:
            self.counts[f"rescued: {row['state']} {row['outcome']}"] += 1
        self.ring(bells)
        for queue in self.ledger.due_queues():
            room = WINDOW - self.channel.depth()
            if room > 0:
                rung = self.ledger.relay(queue, room)
                self.counts["relayed"] += len(rung)
                self.ring(rung)

    def graves(self) -> Iterator[UUID]:
        reader = self.place.graves.fileno()
        while select.select([reader], [], [], 0)[0]:
            yield UUID(bytes=os.read(reader, 16))


class Canceller(Member):
    """Asks for the end of some jobs, at any moment of theirs."""

    def __init__(self, place: Place, ids: Sequence[UUID]) -> None:
        super().__init__(place, "hammer canceller")
        self.ids = ids

    def run(self) -> None:
        for job_id in self.ids:
            if self.place.stop.wait(0.02):
                return
            state, bells = self.ledger.cancel(job_id, "the hammer changed its mind")
            self.counts[f"cancel: {state}"] += 1
            self.ring(bells)


class Cutter(Member):
    """Terminates the backend of one worker after the other, rather busy ones than idle ones."""

    def run(self) -> None:
        with psycopg.connect(self.place.conninfo, autocommit=True) as own:
            while not self.place.stop.wait(self.plan.cut_every):
                cut = own.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE application_name = %s AND datname = current_database()
                    ORDER BY state = 'active' AND random() < 0.5 DESC, random() LIMIT 1""",
                    [APPLICATION],
                ).fetchone()
                self.counts["backends cut"] += cut is not None


def _member(kind: str, place: Place, ids: Sequence[UUID]) -> None:
    """A process's main function."""
    member: Any
    match kind:
        case "worker":
            member = Worker(place, APPLICATION)
        case "relay":
            member = Relay(place, "hammer relay")
        case "canceller":
            member = Canceller(place, ids)
        case _:
            member = Cutter(place, "hammer cutter")
    try:
        member.ledger.due_queues()  # connects
        place.ready.wait(START_SECONDS)
        member.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the report must tell of it
        member.errors[f"{kind} ended: {type(error).__name__}: {error}"[:300]] += 1
    member.report()


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
        process = context.Process(target=_member, args=(kind, place, cancelled), daemon=True)
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
