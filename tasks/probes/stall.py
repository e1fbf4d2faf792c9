"""Notices that this process stood still: stopped, swapped out, or held up by what runs beside it."""

from __future__ import annotations

import asyncio
import time
from typing import Self

_EVERY = 0.05
#: Timers are this late on any machine. A loop that is later each time, if only a little, gets too little of the
#: processor: what it asks may have answered long ago, and nobody has read that.
_NORMAL = 0.02


class Stall:
    """Counts the seconds for which the running loop did not come round."""

    def __init__(self) -> None:
        self._stalled = 0.0
        self._came_round = time.monotonic()

    async def __aenter__(self) -> Self:
        self._came_round = time.monotonic()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    def seconds(self) -> float:
        """So far. Whoever asks may be the first that runs after a stop: what is just being noticed counts as well."""
        return self._stalled + self._late()

    def _late(self) -> float:
        late = time.monotonic() - self._came_round - _EVERY
        return late if late > _NORMAL else 0.0

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            self._stalled += self._late()
            self._came_round = time.monotonic()
