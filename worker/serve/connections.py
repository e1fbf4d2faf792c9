"""Connections on which nothing is asked, or slowly: they are closed, and so are the oldest where there are too many."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: A request's head comes, and its answer is taken, within so many seconds.
QUIET_SECONDS = 20.0
#: Or half of the files that this process may have open, if that is less: a thousand are more than there is room for
#: where the system's limit is 1,024, and one that cannot be accepted can be closed by nobody.
MOST = 1000
LOOK_SECONDS = 1.0


class Watch:
    """Knows since when each connection waits for its client. aiohttp itself waits for a request's head for ever."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}
        self._busy: dict[Any, int] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Between a request's head and its answer a connection waits for us."""
        line = request.protocol
        self._busy[line] = self._busy.get(line, 0) + 1
        try:
            return await handler(request)
        finally:
            self._busy[line] -= 1
            if not self._busy[line]:
                del self._busy[line]
            self._since[line] = time.monotonic()

    async def run(self, server: web.Server) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(server)

    def look(self, server: web.Server) -> None:
        now = time.monotonic()
        lines = server.connections
        self._since = {line: self._since.get(line, now) for line in lines}
        waiting = sorted((line for line in lines if line not in self._busy), key=self._since.__getitem__)
        surplus = max(0, len(lines) - min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        for number, line in enumerate(waiting):
            if number < surplus or now - self._since[line] > QUIET_SECONDS:
                transport = line.transport
                line.force_close()
                if transport is not None:
                    transport.abort()  # what is left of an answer is not waited for either
