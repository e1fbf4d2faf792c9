"""A few numbers that a worker's processes share: when they must end, whether they take anything new,
who holds a lease until when, what was dropped.

One anonymous memory map made before the children are forked. Every slot has one writer (the main process: slot 0;
each child of the pool: its index + 1), so nothing needs a lock; the main process reads them all.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from db import keyring
from db.ledger import process_key

SLOTS = 1024
_HEAD = struct.Struct("=dq")  # when every job must end, whether nothing new is taken
_SLOT = struct.Struct("=qqdq8q4d1q")  # pid, its start, deadline, claims under way, counters, what encryption did
_CRYPTO = struct.Struct("=4d1q")  # sealed, its seconds, opened, its seconds, failures
_DRAINING = 8
_DEADLINE, _CLAIMS, _COUNTERS, _ENCRYPTION = 16, 24, 32, 96


class Dropped(IntEnum):
    """Why a message was thrown away; counted, and reported once a minute."""

    DUPLICATE = 0
    UNKNOWN = 1
    WRONG_TASK = 2
    MALFORMED = 3
    NOT_A_TASK = 4
    REFUSED_COMMAND = 5


class Board:
    """The shared slots of one worker. Times are points on :func:`tasks.supervisor.now`'s clock."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _HEAD.size + _SLOT.size * SLOTS)
        self._slot = 0
        self._reported = [0] * len(Dropped)
        self._claims, self._claims_lock = 0, threading.Lock()
        self._noted = (0.0, 0.0, 0.0, 0.0, 0)

    def take_slot(self, index: int) -> None:
        """From now on this process writes to this slot. Counters of the one before it stay."""
        self._slot = min(index, SLOTS - 1)
        pid = os.getpid()
        self._noted = _encryption_here()  # what was done before the fork is another's to tell
        struct.pack_into("=qqdq", self._map, self._at(self._slot), pid, _start_of(pid), 0.0, 0)

    def set_deadline(self, end: float) -> None:
        """This process must have ended what it does by then, or be killed; 0: it does nothing."""
        struct.pack_into("=d", self._map, self._at(self._slot) + _DEADLINE, end)

    def overdue(self, now: float) -> Iterator[int]:
        """Processes whose deadline has passed, each once. A number that belongs to another process now is skipped."""
        for slot in range(SLOTS):
            pid, started, end = struct.unpack_from("=qqd", self._map, self._at(slot))
            if slot and pid == 0:
                return
            if 0 < end <= now:
                struct.pack_into("=d", self._map, self._at(slot) + _DEADLINE, 0.0)
                if _start_of(pid) == started:
                    yield pid

    def end_at(self, at: float) -> None:
        """In the main process: every job must end by then. The first call counts."""
        if not self.ends_at:
            struct.pack_into("=d", self._map, 0, at)

    @property
    def ends_at(self) -> float:
        """When the worker's shutdown ends what still runs, or 0: it is not shutting down."""
        return float(_HEAD.unpack_from(self._map, 0)[0])

    def drain(self, wanted: bool) -> None:
        """In the main process: from now on nothing new is taken, or it is again."""
        struct.pack_into("=q", self._map, _DRAINING, int(wanted))

    @contextmanager
    def claiming(self) -> Iterator[bool]:
        """Around a claim: whether anything new may be taken. What this has allowed, :attr:`is_claiming` shows: who has
        set :meth:`drain` and then sees no claim under way knows that none will come."""
        self._count_claim(1)
        try:
            yield not (self.ends_at or _HEAD.unpack_from(self._map, 0)[1])
        finally:
            self._count_claim(-1)

    def _count_claim(self, step: int) -> None:
        with self._claims_lock:  # a pool of threads claims several at once
            self._claims += step
            struct.pack_into("=q", self._map, self._at(self._slot) + _CLAIMS, self._claims)

    @property
    def is_claiming(self) -> bool:
        """Whether any process of this worker is in the middle of a claim; one that died there is until replaced."""
        for slot in range(SLOTS):
            fields = _SLOT.unpack_from(self._map, self._at(slot))
            if slot and fields[0] == 0:
                break
            if fields[3]:
                return True
        return False

    def count(self, reason: Dropped) -> None:
        offset = self._at(self._slot) + _COUNTERS + 8 * reason
        struct.pack_into("=q", self._map, offset, struct.unpack_from("=q", self._map, offset)[0] + 1)

    def take_counts(self) -> dict[str, int]:
        """What was dropped since the last call, by reason; only reasons that occurred."""
        totals = [0] * len(Dropped)
        for slot in range(SLOTS):
            fields = _SLOT.unpack_from(self._map, self._at(slot))
            if slot and fields[0] == 0:
                break
            for reason in Dropped:
                totals[reason] += fields[4 + reason]
        fresh = {reason.name.lower(): totals[reason] - self._reported[reason] for reason in Dropped}
        self._reported = totals
        return {reason: count for reason, count in fresh.items() if count}

    def note_encryption(self) -> None:
        """Add what this process has sealed and opened since the last call."""
        told, here = self._noted, _encryption_here()
        self._noted = here
        at = self._at(self._slot) + _ENCRYPTION
        known = _CRYPTO.unpack_from(self._map, at)
        _CRYPTO.pack_into(self._map, at, *(k + new - old for k, new, old in zip(known, here, told, strict=True)))

    def encryption(self) -> dict[str, float]:
        """What all processes of this worker have noted since it started."""
        totals = [0.0] * 5
        for slot in range(SLOTS):
            offset = self._at(slot)
            if slot and struct.unpack_from("=q", self._map, offset)[0] == 0:
                break
            totals = [a + b for a, b in zip(totals, _CRYPTO.unpack_from(self._map, offset + _ENCRYPTION), strict=True)]
        return dict(zip(("sealed", "sealed_seconds", "opened", "opened_seconds", "failures"), totals, strict=True))

    @staticmethod
    def _at(slot: int) -> int:
        return _HEAD.size + _SLOT.size * slot


def _encryption_here() -> tuple[float, float, float, float, int]:
    sealed, opened = keyring.sealed, keyring.opened
    return sealed.count, sealed.seconds, opened.count, opened.seconds, opened.failures


def _start_of(pid: int) -> int:
    return int(process_key(pid).partition(":")[2])


board = Board()
