"""The ledger's protocol as a model that is searched exhaustively: every order of every step, with every fault.

The row is the truth, a message is a doorbell. What stands here is what ``migrations/versions/*_ledger*.sql``, the
workers and the supervisor do; each rule can be taken away, and the search then shows what it was for.

Time is abstract: a lease "runs out", a pause "is over", a mark "grows old", each at any moment that the rules allow.
Faults (a lost or doubled bell, a death, a stall, an answer lost after its commit) are bounded by a budget, so that a
search ends; a step is *fair* when a platform that is left alone takes it some day.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.decisions import Decisions
from tests.model.world import (
    ABSENT,
    BEGUN,
    CANCELLED,
    CLAIMED,
    ENDING,
    FINAL,
    HOLDING,
    IDLE,
    LOOKED,
    QUEUED,
    RINGING,
    RUNG,
    RUNNING,
    SUCCEEDED,
    WORKING,
    Broken,
    Effect,
    Job,
    Step,
    Violation,
    Worker,
    World,
    change_row,
    ending,
    fault,
    fresh_token,
    is_busy,
    is_held,
    put_worker,
    ringing,
)  # fmt: skip


class Protocol(Decisions):
    """All steps that can be taken in a world. Raises Violation when one of them breaks a promise."""

    def steps(self, world: World) -> list[Step]:
        taken: list[Step] = []
        for each in (self._callers, self._broker, self._clock, self._relay, self._rescue, self._supervisors):
            taken += each(world)
        for number, worker in enumerate(world.workers):
            if worker not in world.workers[:number]:  # two workers in one state are one
                taken += self._worker(world, number, worker)
        for step in taken:
            self._check(world, step)
        return [Step(step.label, self._tidy(step.world), step.fair) for step in taken]

    def is_over(self, world: World) -> bool:
        """Every job that somebody serves has ended."""
        return all(
            job.state in FINAL or self.scene.queues[j] not in self.scene.served for j, job in enumerate(world.jobs)
        )

    # Who wants something: callers, and whoever cancels.

    def _callers(self, world: World) -> Iterator[Step]:
        for j, job in enumerate(world.jobs):
            if job.state == ABSENT:
                # The caller rings by himself: the relay gives him two seconds. One that rings but once must not.
                there = change_row(world, j, state=QUEUED, ring=not self.rules.level_triggered)
                yield Step(f"enqueue {j}", self._bell(there, j) if self.rules.fast_path else there, True)
                yield from fault(world, f"enqueue {j}, the caller dies before he rings", there)
                if not world.bells[j]:
                    yield from fault(world, f"a bell of {j} overtakes its commit", self._bell(world, j))
            if j in self.scene.cancels and not job.cancel:
                if job.state == QUEUED:
                    after, bells = self._hand_over(change_row(world, j, state=CANCELLED, cancel=True))
                    yield Step(f"cancel {j}", self._bells(after, bells), False)
                elif job.state == RUNNING:
                    yield Step(f"ask {j} to end", change_row(world, j, cancel=True), False)

    # What carries doorbells: it may lose and double them.

    def _broker(self, world: World) -> Iterator[Step]:
        for j in self.ids:
            if world.bells[j]:
                yield from fault(world, f"a bell of {j} is lost", self._bell(world, j, -1))
                yield from fault(world, f"a bell of {j} is doubled", self._bell(world, j))

    # What only time does.

    def _clock(self, world: World) -> Iterator[Step]:
        for j, job in enumerate(world.jobs):
            if job.state == QUEUED and not job.due:
                yield Step(f"{j} is due", change_row(world, j, due=True, ring=True), True)
            elif job.state == RUNNING:
                yield from self._lease_runs_out(world, j, job)
                # A holder that is well has beaten within the grace: no mark grows old under it.
                if job.mark == 1 and not is_held(world, job.token):
                    yield Step(f"the mark of {j} grows old", change_row(world, j, mark=2), True)
                if self.scene.failover:
                    back = change_row(world, j, state=QUEUED, attempt=job.attempt - 1, token=0, lease=False, mark=0,
                        begun=False, ring=True)  # fmt: skip
                    yield from fault(world, f"a failover forgets the claim of {j}", back)

    def _lease_runs_out(self, world: World, j: int, job: Job) -> Iterator[Step]:
        if not job.lease:
            return
        after = change_row(world, j, lease=False)
        workers = tuple(
            worker._replace(lapsed=True) if worker.token == job.token and worker.at == BEGUN else worker
            for worker in after.workers
        )
        effects = after.effects
        if self.rules.supervisor:
            effects = tuple(effect for effect in effects if effect.token != job.token)
        after = after._replace(workers=workers, effects=effects)
        if not is_held(world, job.token):
            yield Step(f"the lease of {j} runs out", after, True)
        elif self.scene.stalls:
            yield from fault(world, f"the holder of {j} stalls, its lease runs out", after)
        elif self.scene.outage:
            yield from fault(world, f"the database is away, the lease of {j} runs out", after)

    # The timer in every worker's main process.

    def _relay(self, world: World) -> Iterator[Step]:
        if not self.rules.relay:
            return
        for j, job in enumerate(world.jobs):
            if not (job.state == QUEUED and job.due and job.ring):
                continue
            rung = change_row(world, j, ring=False)
            if self.rules.pushes_back and (self._ahead(world.jobs, j) is not None or is_busy(world.jobs)):
                yield Step(f"the relay pushes {j} back", rung, True)
            else:
                yield Step(f"the relay rings {j}", self._bell(rung, j), True)
                yield from fault(world, f"the relay dies before it rings {j}", rung)

    def _rescue(self, world: World) -> Iterator[Step]:
        if not self.rules.rescue:
            return
        for j, job in enumerate(world.jobs):
            if job.state != RUNNING:
                continue
            if not job.lease and not job.mark and self.rules.second_look:
                mark = 2 if self.scene.stalls else 1  # under a stalled holder it grows old unseen
                yield Step(f"a first look marks {j}", change_row(world, j, mark=mark), True)
            ran_out = not job.lease and (job.mark == 2 or not self.rules.second_look)
            gone = not is_held(world, job.token) and not (
                self.rules.supervisor_is_holder and any(effect.token == job.token for effect in world.effects)
            )
            if ran_out or gone:
                if self.scene.outage and is_held(world, job.token):
                    raise Violation(Broken.GIVEN_UP)
                to = self._verdict(j, job, "lost")
                after, bells = self._hand_over(self._end(world, j, to, "lost", 0))
                yield Step(f"the rescue of {j}: {to}", self._bells(after, bells), ran_out)
                if bells:
                    yield from fault(world, f"the rescue of {j}: {to}, and dies before it rings", after)

    # The process between a worker and the effect.

    def _supervisors(self, world: World) -> Iterator[Step]:
        for effect in world.effects:
            if not effect.orphan:
                continue
            gone = world._replace(effects=tuple(each for each in world.effects if each != effect))
            if not self.rules.supervisor:
                yield Step(f"an orphan of {effect.job} ends by itself", gone, True)
                continue
            row = world.jobs[effect.job]
            told = gone
            if row.state == RUNNING and self._holds(row, effect.token, effect.attempt):
                if row.token != effect.token:
                    raise Violation(Broken.STALE)
                to = self._verdict(effect.job, row, "interrupted")
                told, _ = self._hand_over(self._end(gone, effect.job, to, "interrupted", effect.token))
            yield Step(f"the supervisor ends an orphan of {effect.job} and says so", told, True)
            yield from fault(world, f"the supervisor ends an orphan of {effect.job} and can tell nobody", gone)

    # A worker.

    def _worker(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        if worker.at == IDLE:
            for j in self.ids:
                if world.bells[j] and self.scene.queues[j] in self.scene.served:
                    took = put_worker(self._bell(world, j, -1), number, Worker(RUNG, j, token=fresh_token(world)))
                    yield Step(f"a worker hears {j}", took, True)
            return
        orphaned = tuple(
            effect._replace(orphan=True) if effect.token == worker.token else effect for effect in world.effects
        )
        dead = put_worker(world._replace(effects=orphaned), number, Worker())
        yield from fault(world, f"a worker dies, {worker.at} {worker.job}", dead)
        part = {
            RUNG: self._claims, LOOKED: self._takes, CLAIMED: self._begins, BEGUN: self._starts,
            WORKING: self._works, ENDING: self._finishes, RINGING: self._rings,
        }[worker.at]  # fmt: skip
        yield from part(world, number, worker)
        if worker.at in HOLDING:
            yield from self._beats(world, number, worker)

    def _claims(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        j, job = worker.job, world.jobs[worker.job]
        spent = put_worker(world, number, Worker())
        if job.state == RUNNING and job.token == worker.token:
            held = Worker(CLAIMED, j, job.attempt, worker.token)
            yield Step(f"claim {j} again: run", put_worker(world, number, held), True)
        elif job.state != QUEUED or not job.due:
            yield Step(f"claim {j}: nothing to do", spent, True)
        elif (ahead := self._ahead(world.jobs, j)) is not None or is_busy(world.jobs):
            # The bell is spent: a head is due for a ring at once, those behind it later.
            ring = job.ring if not self.rules.refused_head_rings else ahead is None
            helps = self.rules.helps_the_head and ahead is not None and not is_busy(world.jobs)
            refused = change_row(spent, j, ring=ring)
            yield Step(f"claim {j}: refused", refused, True)
            if helps and ahead is not None and world.jobs[ahead].ring:
                yield Step(f"claim {j}: refused, ring {ahead}", put_worker(refused, number, ringing((ahead,))), True)
        elif self.rules.unique_index:
            yield from self._takes(world, number, worker)
        else:
            yield Step(f"claim {j}: the key is free", put_worker(world, number, worker._replace(at=LOOKED)), True)

    def _takes(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        j, job = worker.job, world.jobs[worker.job]
        if job.state != QUEUED:
            yield Step(f"claim {j}: nothing to do", put_worker(world, number, Worker()), True)
            return
        if job.cancel:
            raise Violation(Broken.AFTER_CANCEL)
        taken = change_row(world, j, state=RUNNING, attempt=job.attempt + 1, token=worker.token, lease=True, mark=0,
            begun=False, ring=False)  # fmt: skip
        held = Worker(CLAIMED, j, job.attempt + 1, worker.token)
        yield Step(f"claim {j}: run", put_worker(taken, number, held), True)
        yield from fault(world, f"claim {j}: run, but the answer is lost", put_worker(taken, number, worker))

    def _begins(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        j, job = worker.job, world.jobs[worker.job]
        if not (job.state == RUNNING and self._holds(job, worker.token, worker.attempt) and job.lease):
            yield Step(f"begin {j}: lost", put_worker(world, number, ending(worker, "interrupted")), True)
            return
        if job.token != worker.token:
            raise Violation(Broken.STALE)
        if job.cancel and self.rules.begin_sees_cancel:
            yield Step(f"begin {j}: cancelled", put_worker(world, number, ending(worker, "cancelled")), True)
            return
        if job.cancel:
            raise Violation(Broken.AFTER_CANCEL)
        begun = change_row(world, j, begun=self.rules.begin_is_written, mark=0)
        went = put_worker(begun, number, worker._replace(at=BEGUN, lapsed=False))
        yield Step(f"begin {j}: go", went, True)
        yield from fault(world, f"begin {j}: go, but the answer is lost", begun)

    def _starts(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        j = worker.job
        if worker.lapsed and self.rules.supervisor and self.rules.starts_nothing_late:
            yield Step(f"{j} is not started", put_worker(world, number, ending(worker, "interrupted")), True)
            return
        effects = tuple(sorted((*world.effects, Effect(j, worker.token, worker.attempt))))
        starts = tuple(
            min(2, count + (n == j and not self.scene.idempotent[j])) for n, count in enumerate(world.starts)
        )
        working = put_worker(world, number, worker._replace(at=WORKING))
        yield Step(f"the effect of {j} starts", working._replace(effects=effects, starts=starts), True)

    def _works(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        j, job = worker.job, world.jobs[worker.job]
        others = tuple(effect for effect in world.effects if effect.token != worker.token)
        stopped = world._replace(effects=others)
        if others == world.effects:
            yield Step(f"the effect of {j} was ended", put_worker(world, number, ending(worker, "interrupted")), True)
            return
        for outcome in ("ok", "failed"):
            yield Step(f"the effect of {j} ends: {outcome}", put_worker(stopped, number, ending(worker, outcome)), True)
        if not (job.state == RUNNING and self._holds(job, worker.token, worker.attempt)):
            ended = put_worker(stopped, number, ending(worker, "interrupted"))
            yield Step(f"a heartbeat says that {j} is lost", ended, True)
        elif job.cancel:
            ended = put_worker(stopped, number, ending(worker, "cancelled"))
            yield Step(f"a heartbeat says that {j} is to end", ended, True)

    def _finishes(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        j, job = worker.job, world.jobs[worker.job]
        left = put_worker(world, number, Worker())
        if job.state == RUNNING and self._holds(job, worker.token, worker.attempt):
            if job.token != worker.token:
                raise Violation(Broken.STALE)
            to = self._verdict(j, job, worker.outcome)
            if worker.outcome == "ok" and to != SUCCEEDED:
                raise Violation(Broken.FORGOTTEN)
            after, bells = self._hand_over(self._end(world, j, to, worker.outcome, worker.token))
            yield Step(f"finish {j}: {to}", put_worker(after, number, ringing(bells)), True)
            again = put_worker(after, number, worker._replace(recorded=True))
            yield from fault(world, f"finish {j}: {to}, but the answer is lost", again)
        elif self.rules.done_token and job.done == worker.token:
            yield Step(f"finish {j} again: {job.state}", left, True)
        else:
            # Only while nobody has held the job since: later, its row tells of the last end only.
            if worker.recorded and job.attempt == worker.attempt:
                raise Violation(Broken.CALLED_LATE)
            yield Step(f"finish {j}: late", left, True)

    def _rings(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        yield Step(f"ring {worker.bells}", self._bells(put_worker(world, number, Worker()), worker.bells), True)

    def _beats(self, world: World, number: int, worker: Worker) -> Iterator[Step]:
        job = world.jobs[worker.job]
        if not (job.state == RUNNING and self._holds(job, worker.token, worker.attempt)):
            return
        if job.lease and not job.mark and not worker.lapsed:
            return  # nothing would change
        if job.token != worker.token:
            raise Violation(Broken.STALE)
        beaten = change_row(world, worker.job, lease=True, mark=0)
        yield Step(f"a heartbeat of {worker.job}", put_worker(beaten, number, worker._replace(lapsed=False)), True)

    def _check(self, before: World, step: Step) -> None:
        """What must hold in every world and of every step."""
        after = step.world
        if sum(job.state == RUNNING for job in after.jobs) > 1:
            raise Violation(Broken.TWO_RUNNING, step.label)
        if len(after.effects) > 1 and Broken.OVERLAP not in self.scene.unpromised:
            raise Violation(Broken.OVERLAP, step.label)
        if any(count > 1 for count in after.starts) and Broken.TWICE not in self.scene.unpromised:
            raise Violation(Broken.TWICE, step.label)
        for was, job in zip(before.jobs, after.jobs, strict=True):
            if was.state in FINAL and job != was:
                raise Violation(Broken.REVIVED, step.label)
            if job.attempt > self.scene.max_attempts + self.scene.max_rescues:
                raise Violation(Broken.ENDLESS, step.label)
