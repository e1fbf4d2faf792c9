"""What a search starts from: which rules hold, and what there is to do and to go wrong."""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.world import (
    Broken,
    Job,
    Worker,
    World,
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """The protocol; every rule may be switched off. The last five only save time."""

    relay: bool = True  # rings what is queued, due, unblocked and whose ring_at has passed
    level_triggered: bool = True  # ... again and again, whatever became of earlier bells
    rescue: bool = True
    second_look: bool = True  # acts only on a mark that has grown old; a heartbeat clears it
    verdict: bool = True  # a lost attempt is repeated only if it had not begun or is idempotent
    bounded_rescues: bool = True
    fence: str = "token"  # who may change a running row: the token's holder, the attempt's, or anybody ("none")
    done_token: bool = True  # the row remembers whose end it recorded
    begin_is_written: bool = True  # before the effect starts
    begin_sees_cancel: bool = True
    supervisor: bool = True  # ends the effect before its lease can run out, and when its worker dies
    starts_nothing_late: bool = True  # the supervisor refuses to start after the end of the lease
    supervisor_is_holder: bool = True  # an attempt is dead only when its supervisor is gone, too
    unique_index: bool = True  # deciding the key and taking it are one
    order: str = "queue"  # within a key: by queue ("queue"), across queues ("key"), none ("")
    cancel_beats_retry: bool = True
    success_beats_cancel: bool = True

    fast_path: bool = True  # the caller publishes after its commit
    hand_over: bool = True  # who frees a key rings the head of each queue
    refused_head_rings: bool = True  # a head that was refused is due for a ring at once
    pushes_back: bool = True  # the relay looks at blocked rows less often, and does not ring them
    helps_the_head: bool = True  # a claim that is not the head's rings the head, if its time has come


@dataclass(frozen=True)
class Scene:
    """What the rules are tried on: jobs on one key, workers, an adversary with a budget of faults."""

    idempotent: tuple[bool, ...] = (True, False)
    queues: tuple[str, ...] = ("a", "a")
    served: tuple[str, ...] = ("a", "b")
    workers: int = 2
    faults: int = 2
    cancels: tuple[int, ...] = (0,)
    stalls: bool = True  # a living worker may stop until its lease has run out
    outage: bool = False  # the database may be away until every lease has run out; workers are well
    failover: bool = False  # a failover may forget a claim
    unpromised: frozenset[Broken] = frozenset()  # what nobody can promise in this scene
    bells: int = 1  # doorbells of one job that may lie in the broker at once; each worker may hold another
    max_attempts: int = 2
    max_rescues: int = 1

    def start(self) -> World:
        count = len(self.idempotent)
        return World((Job(),) * count, (0,) * count, (Worker(),) * self.workers, (), (0,) * count, self.faults)
