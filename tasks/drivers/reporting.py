"""A driver for hosts and its worker: events go there, answers to what was said of hosts come from there."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tasks.drivers.events import emit

#: A plan with a thousand hosts fits into it.
_LONGEST_LINE = 64 * 1024 * 1024


class Refused(Exception):
    """The worker cannot store what was said of a host: this attempt is over."""


class Worker:
    """The other end of the pipes: events go there, answers come from there."""

    def __init__(self) -> None:
        self._reader: asyncio.StreamReader | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._listening: asyncio.Task[None] | None = None

    async def plan(self) -> dict[str, Any]:
        """The first line; from then on answers are listened for."""
        self._reader = asyncio.StreamReader(limit=_LONGEST_LINE)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        plan: dict[str, Any] = json.loads(await self._reader.readline())
        self._listening = asyncio.create_task(self._listen())
        return plan

    async def _listen(self) -> None:
        assert self._reader is not None
        while line := await self._reader.readline():
            answer = json.loads(line)
            stored = "ack" in answer
            waiting = self._waiting.pop(answer["ack" if stored else "refuse"], None)
            if waiting is None or waiting.done():
                continue
            if stored:
                waiting.set_result(None)
            else:
                waiting.set_exception(Refused())

    def say(self, text: str) -> None:
        emit({"event": "step", "text": text})

    def log(self, stream: str, text: str) -> None:
        emit({"event": "log", "stream": stream, "text": text})

    def report(self, *hosts: dict[str, Any]) -> asyncio.Future[None]:
        """Tell what is known of hosts; awaiting the answer waits until that is stored. Raises Refused then."""
        self._number += 1
        stored = asyncio.get_running_loop().create_future()
        stored.add_done_callback(_looked_at)
        self._waiting[self._number] = stored
        emit({"event": "host", "id": self._number, "hosts": list(hosts)})
        return stored


def _looked_at(stored: asyncio.Future[None]) -> None:
    if not stored.cancelled():
        stored.exception()  # a refusal that nobody waits for is no error of this program
