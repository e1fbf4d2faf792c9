"""What the model is made of: rows, workers, effects, and the steps that lead from one world to another."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

ABSENT, QUEUED, RUNNING = "absent", "queued", "running"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
FINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})

#: Where a worker stands.
IDLE = "idle"
RUNG = "rung"  # has taken a doorbell and made a token; claims, and again with the same token if no answer came
LOOKED = "looked"  # only without the unique index: has seen that the key is free
CLAIMED = "claimed"  # holds the job; nothing has begun
BEGUN = "begun"  # begin said go; the supervisor is told to start
WORKING = "working"  # the effect runs under its supervisor
ENDING = "ending"  # knows the outcome; records it, and again if no answer came
RINGING = "ringing"  # has bells of others to publish
HOLDING = frozenset({CLAIMED, BEGUN, WORKING, ENDING})


class Broken(StrEnum):
    """What a search can find."""

    TWO_RUNNING = "two jobs of one key are running"
    OVERLAP = "two effects of one key at the same time"
    TWICE = "an effect that must not be repeated started twice"
    STALE = "somebody who holds the job no more changed its row"
    AFTER_CANCEL = "something began after a cancel that was there to be seen"
    FORGOTTEN = "an effect that succeeded is recorded as something else"
    REVIVED = "a job that had ended changed"
    ENDLESS = "more attempts than are allowed"
    GIVEN_UP = "a job was given up while its worker was well"
    CALLED_LATE = "a result that was recorded is called late"
    STUCK = "no way to the end"


class Violation(Exception):
    """A promise is broken by the step of this label."""

    def __init__(self, broken: Broken, label: str = "") -> None:
        super().__init__(broken.value)
        self.broken = broken
        self.label = label


class Job(NamedTuple):
    """A row. ``due`` and ``ring``: run_at and ring_at have passed. ``mark``: 0 none, 1 fresh, 2 older than the grace.
    ``done``: the token whose end was recorded last. With a level-triggered relay a pause may be over at any moment, so
    that ``ring`` is always true and need not be remembered."""

    state: str = ABSENT
    attempt: int = 0
    failures: int = 0
    rescues: int = 0
    begun: bool = False
    cancel: bool = False
    due: bool = True
    ring: bool = False
    lease: bool = False
    mark: int = 0
    token: int = 0
    done: int = 0


class Worker(NamedTuple):
    """A worker's process. ``lapsed``: by its own clock its lease has run out. ``bells``: of jobs, to publish."""

    at: str = IDLE
    job: int = 0
    attempt: int = 0
    token: int = 0
    lapsed: bool = False
    outcome: str = ""
    recorded: bool = False
    bells: tuple[int, ...] = ()


class Effect(NamedTuple):
    """Something that happens outside. ``orphan``: its worker is dead, its supervisor is not."""

    job: int
    token: int
    attempt: int
    orphan: bool = False


class World(NamedTuple):
    jobs: tuple[Job, ...]
    bells: tuple[int, ...]
    workers: tuple[Worker, ...]
    effects: tuple[Effect, ...] = ()
    starts: tuple[int, ...] = ()
    faults: int = 0


class Step(NamedTuple):
    label: str
    world: World
    fair: bool


def fault(world: World, label: str, after: World) -> Iterator[Step]:
    if world.faults:
        yield Step(label, after._replace(faults=world.faults - 1), False)


def change_row(world: World, j: int, **changes: object) -> World:
    jobs = world.jobs
    return world._replace(jobs=(*jobs[:j], jobs[j]._replace(**changes), *jobs[j + 1 :]))


def put_worker(world: World, number: int, worker: Worker) -> World:
    workers = world.workers
    return world._replace(workers=(*workers[:number], worker, *workers[number + 1 :]))


def ringing(bells: tuple[int, ...]) -> Worker:
    return Worker(RINGING, bells=bells) if bells else Worker()


def ending(worker: Worker, outcome: str) -> Worker:
    return worker._replace(at=ENDING, outcome=outcome)


def is_busy(jobs: tuple[Job, ...]) -> bool:
    return any(job.state == RUNNING for job in jobs)


def is_held(world: World, token: int) -> bool:
    """A worker's process lives that made this token."""
    return any(worker.token == token and worker.at != IDLE for worker in world.workers)


def fresh_token(world: World) -> int:
    """One that nobody remembers: as good as one that was never given."""
    known = {0, *(worker.token for worker in world.workers), *(effect.token for effect in world.effects)}
    for job in world.jobs:
        known |= {job.token, job.done}
    return next(token for token in range(1, len(known) + 1) if token not in known)
