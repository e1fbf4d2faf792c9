"""What the ledger decides: who holds a job, who comes first, how an attempt ends, who is rung; and what of a world may
be forgotten."""

from __future__ import annotations

from tests.model.scene import Rules, Scene
from tests.model.world import (
    CANCELLED,
    ENDING,
    FAILED,
    FINAL,
    QUEUED,
    RUNG,
    SUCCEEDED,
    Job,
    Worker,
    World,
    change_row,
    is_busy,
)  # fmt: skip


class Decisions:
    """The rules of one search, applied to a scene."""

    def __init__(self, rules: Rules, scene: Scene) -> None:
        self.rules = rules
        self.scene = scene
        self.ids = range(len(scene.idempotent))

    def _holds(self, job: Job, token: int, attempt: int) -> bool:
        """The guard of every statement after the claim, on a running row."""
        match self.rules.fence:
            case "token":
                return job.token == token and job.attempt == attempt
            case "attempt":
                return job.attempt == attempt
            case _:
                return True

    def _ahead(self, jobs: tuple[Job, ...], j: int) -> int | None:
        """Whoever waits before this job: the first that is due, of its queue."""
        if not self.rules.order:
            return None
        for other in range(j):
            same_line = self.rules.order == "key" or self.scene.queues[other] == self.scene.queues[j]
            if same_line and jobs[other].state == QUEUED and jobs[other].due:
                return other
        return None

    def _verdict(self, j: int, job: Job, outcome: str) -> str:
        idempotent = self.scene.idempotent[j]
        if outcome == "ok" and (self.rules.success_beats_cancel or not job.cancel):
            return SUCCEEDED
        if outcome in ("ok", "cancelled") or (job.cancel and self.rules.cancel_beats_retry):
            return CANCELLED
        if outcome == "failed":
            return QUEUED if idempotent and job.failures + 1 < self.scene.max_attempts else FAILED
        if self.rules.bounded_rescues and job.rescues >= self.scene.max_rescues:
            return FAILED
        return QUEUED if idempotent or not job.begun or not self.rules.verdict else FAILED

    def _end(self, world: World, j: int, to: str, outcome: str, done: int) -> World:
        """End the running attempt. A retry waits for its time; what was lost or interrupted may start at once."""
        job = world.jobs[j]
        return change_row(
            world, j, state=to, token=0, lease=False, mark=0, begun=False, done=done, ring=False,
            due=outcome != "failed", failures=job.failures + (outcome == "failed"),
            rescues=job.rescues + (to == QUEUED and outcome != "failed"),
        )  # fmt: skip

    def _hand_over(self, world: World) -> tuple[World, tuple[int, ...]]:
        """The heads of a key that is free, one of each queue: rung by whoever freed it, later by the relay."""
        if not self.rules.hand_over or is_busy(world.jobs):
            return world, ()
        heads: dict[str, int] = {}
        for j, job in enumerate(world.jobs):
            if job.state == QUEUED and job.due:
                heads.setdefault(self.scene.queues[j], j)
        for j in heads.values():
            world = change_row(world, j, ring=False)
        return world, tuple(sorted(heads.values()))

    def _bell(self, world: World, j: int, count: int = 1) -> World:
        bells = world.bells
        return world._replace(bells=(*bells[:j], min(self.scene.bells, bells[j] + count), *bells[j + 1 :]))

    def _bells(self, world: World, ids: tuple[int, ...]) -> World:
        for j in ids:
            world = self._bell(world, j)
        return world

    def _tidy(self, world: World) -> World:
        """Forget what no step will read, and the order of workers: fewer worlds to look at."""
        jobs, bells, workers = world.jobs, world.bells, world.workers
        workers = tuple(sorted([self._tidy_worker(jobs[worker.job], worker) for worker in workers]))
        jobs = tuple([self._tidy_job(job, workers) for job in jobs])
        if any(count and job.state in FINAL for job, count in zip(jobs, bells, strict=True)):
            # A bell of an ended job is answered `duplicate` and changes nothing.
            bells = tuple(0 if job.state in FINAL else count for job, count in zip(jobs, bells, strict=True))
        return World(jobs, bells, workers, world.effects, world.starts, world.faults)

    def _tidy_worker(self, job: Job, worker: Worker) -> Worker:
        if worker.at == RUNG and job.state in FINAL:
            return Worker()
        is_late = worker.at == ENDING and worker.token not in (job.token, job.done) and not worker.recorded
        if is_late and self.rules.fence == "token":
            return Worker()  # its finish will change nothing
        return worker

    def _tidy_job(self, job: Job, workers: tuple[Worker, ...]) -> Job:
        done = job.done if job.done and any(worker.token == job.done for worker in workers) else 0
        if job.state in FINAL:
            attempt = job.attempt if any(worker.recorded for worker in workers) else 0
            return Job(job.state, attempt, cancel=job.cancel, done=done)
        ring = job.ring or (job.state == QUEUED and job.due and self.rules.level_triggered)
        if job.done != done or job.ring != ring:
            return job._replace(done=done, ring=ring)
        return job
