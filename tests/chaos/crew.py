"""The processes of a run: workers that die and stall, a relay, and whoever cancels or cuts connections."""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import termios
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import Any
from uuid import UUID, uuid4

import psycopg

from db.ledger import Bell, Claim, Ledger
from tests.chaos.plan import APPLICATION, CUT, GRACE, START_SECONDS, TASK, TICK_SECONDS, WINDOW, Effect, Plan


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


def act(kind: str, place: Place, ids: Sequence[UUID]) -> None:
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
