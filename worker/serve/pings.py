"""`/ping/ID`, `/ping/ID/fail`, `/ping/ID/start`: heartbeats report from wherever curl runs.

The id is the secret, so it is neither logged nor confirmed: a well-formed one that nobody has gets the answer of one
that somebody has. What is asked too often is turned away before it costs a statement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from uuid import UUID

from aiohttp import web

from db.connection import get_db_session
from db.errors import NotFound
from db.services import checks
from worker.serve.doors import Limit, Threads, network_of

SIGNALS = {"": "ok", "fail": "fail", "start": "start"}


class Pings:
    """One ping a second per heartbeat, fifty per client's network (a NAT hides many), with room for bursts."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._by_token = Limit(per_second=1, burst=10)
        self._by_client = Limit(per_second=50, burst=500)

    async def __call__(self, request: web.Request) -> web.Response:
        try:
            token = UUID(request.match_info["token"])
        except ValueError:
            raise web.HTTPNotFound from None
        signal = SIGNALS[request.match_info.get("signal", "")]
        if not (self._by_client.admits(network_of(request.remote)) and self._by_token.admits(str(token))):
            raise web.HTTPTooManyRequests(text="too often; try again\n", headers={"Retry-After": "10"})
        await self._threads.run(_reporter(token, signal))
        answer = web.Response(text="OK\n")
        if request.body_exists:
            answer.force_close()  # what a job has printed is not read
        return answer


def _reporter(token: UUID, signal: str) -> Callable[[], None]:
    def report() -> None:
        with get_db_session(actor="ping", actor_type="system") as session, contextlib.suppress(NotFound):
            checks.beat(session, token=token, signal=signal)

    return report
