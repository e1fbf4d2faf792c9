"""What every door has: work in few threads, answers that are remembered for a moment, bounds on how often one asks."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address
from typing import Generic, TypeVar

T = TypeVar("T")


class Busy(Exception):
    """More is asked than is answered; try again later."""


class Threads:
    """Database work beside the event loop: so many at once, so many that wait, and the rest is turned away."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="ops-serve")
        self._room = at_once + waiting

    async def run(self, work: Callable[[], T]) -> T:
        """Raises Busy where too many wait already."""
        if self._room <= 0:
            raise Busy
        self._room -= 1
        try:
            # Shielded: whoever hangs up must not free a place that a thread still fills.
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
            future.add_done_callback(self._leave)
        except BaseException:
            self._room += 1
            raise
        return await asyncio.shield(future)

    def _leave(self, future: asyncio.Future[T]) -> None:
        self._room += 1
        if not future.cancelled():
            future.exception()  # somebody may have hung up, and nobody else asks for it

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Remembered(Generic[T]):
    """An answer that is made once for all who ask at the same time, and holds for some seconds."""

    def __init__(self, threads: Threads, make: Callable[[], T], seconds: float) -> None:
        self._threads = threads
        self._make = make
        self._seconds = seconds
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        """Raises what making it raised; that is not remembered."""
        if self._task is None or (self._task.done() and (time.monotonic() >= self._until or self._failed)):
            self._task = asyncio.ensure_future(self._threads.run(self._make))
            self._task.add_done_callback(self._made)
        return await asyncio.shield(self._task)

    @property
    def _failed(self) -> bool:
        return self._task is not None and (self._task.cancelled() or self._task.exception() is not None)

    def _made(self, task: asyncio.Task[T]) -> None:
        self._until = time.monotonic() + self._seconds
        if not task.cancelled():
            task.exception()


class Limit:
    """So many requests per second and key, with room for a burst. Keys that were quiet for long are forgotten, the
    oldest first where there are too many: what an attacker can make us remember is bounded."""

    def __init__(self, per_second: float, burst: float, most_keys: int = 10_000) -> None:
        self._pause = 1.0 / per_second
        self._credit = burst / per_second
        self._most = most_keys
        #: When each key's credit is whole again.
        self._whole_at: OrderedDict[str, float] = OrderedDict()

    def admits(self, key: str) -> bool:
        now = time.monotonic()
        at = max(now, self._whole_at.pop(key, now))
        allowed = at - now <= self._credit - self._pause
        self._whole_at[key] = at + self._pause if allowed else at
        if len(self._whole_at) > self._most:
            self._whole_at.popitem(last=False)
        return allowed


def network_of(remote: str | None) -> str:
    """Whom a bound is for: an IPv4 address, or an IPv6 network of the size that one customer has."""
    try:
        address = ip_address((remote or "").partition("%")[0])
    except ValueError:
        return remote or "-"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)
