"""What a run of the hammer does, and what it found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

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
