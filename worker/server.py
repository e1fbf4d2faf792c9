"""`ops serve`: metrics, health, heartbeats' pings and the status page, for machines and people who have no account.

One event loop answers; the database is asked in few threads, by read-only sessions, and what many may ask is made once
for all of them. Nothing is logged of a request: a ping's address is its secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from db.errors import Conflict, OpsError, Unavailable
from db.settings import get_settings
from worker import logs
from worker.serve import health, metrics
from worker.serve.access import is_loopback, may_read_metrics
from worker.serve.connections import Watch
from worker.serve.doors import Busy, Remembered, Threads
from worker.serve.front import Front
from worker.serve.pings import Pings

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: An answer that takes longer is none.
ANSWER_SECONDS = 15.0
#: A scrape or a look at the health holds for so long, however many ask.
REMEMBER_SECONDS = 1.0
#: Whoever asks after the health waits no longer: a database that is frozen does not answer.
HEALTH_SECONDS = 4.0
STOP_SECONDS = 5.0
#: Nobody has anything to send us.
BODY_BYTES = 64 * 1024
LINE_BYTES = 4096

HEADERS = {
    "Server": "ops",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}


class Serve:
    """The doors, and what they share."""

    def __init__(self) -> None:
        self.token = get_settings().scrape_token()
        self.watch = Watch()
        self.threads = Threads(at_once=4, waiting=60)
        self.health = Remembered(self.threads, health.look, REMEMBER_SECONDS)
        # Threads of their own: a slow scrape holds up no heartbeat.
        self.ping_threads = Threads(at_once=4, waiting=400)
        self.pings = Pings(self.ping_threads)
        self.front = Front(self.threads)
        self._metrics: dict[str, Remembered[tuple[bytes, str]]] = {}

    def app(self) -> web.Application:
        made = web.Application(middlewares=[self.watch.middleware, self.answer], client_max_size=BODY_BYTES)
        made.on_response_prepare.append(_harden)
        made.router.add_get("/", self.front)
        made.router.add_get("/metrics", self.metrics)
        made.router.add_get("/healthz", self.healthz)
        made.router.add_get("/readyz", self.readyz)
        for path in ("/ping/{token}", "/ping/{token}/{signal:fail|start}"):
            made.router.add_get(path, self.pings, allow_head=False)
            made.router.add_post(path, self.pings)
        return made

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request ends soon, and in one line."""
        if (request.content_length or 0) > BODY_BYTES:
            raise _closing(web.HTTPRequestEntityTooLarge(BODY_BYTES, request.content_length or 0, text="too much\n"))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await handler(request)
        except (Busy, TimeoutError):
            raise web.HTTPServiceUnavailable(text="busy; try again\n", headers={"Retry-After": "5"}) from None
        except (OpsError, SQLAlchemyError) as error:
            # What the database says may name hosts and roles: that is for the log.
            log.warning("not_answered", door=_door(request), error=f"{type(error).__name__}: {error}"[:200])
            raise web.HTTPServiceUnavailable(
                text="the database does not answer; try again\n", headers={"Retry-After": "5"}
            ) from None

    async def metrics(self, request: web.Request) -> web.Response:
        if not may_read_metrics(request, self.token):
            raise web.HTTPUnauthorized(
                text="needs the token of OPS_METRICS_TOKEN as a bearer\n", headers={"WWW-Authenticate": "Bearer"}
            )
        kind = "openmetrics" if "application/openmetrics-text" in request.headers.get("Accept", "") else "text"
        if kind not in self._metrics:
            accept = "application/openmetrics-text; version=1.0.0" if kind == "openmetrics" else ""
            self._metrics[kind] = Remembered(self.threads, lambda: metrics.render(accept), REMEMBER_SECONDS)
        body, content_type = await self._metrics[kind].get()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def healthz(self, _request: web.Request) -> web.Response:
        """200 while this process and its database answer; restarting it does not help where a beat is silent."""
        try:
            found = await self._look()
        except (Busy, TimeoutError, OpsError, SQLAlchemyError):
            return web.json_response({"status": "failing", "database": "does not answer"}, status=503)
        return web.json_response(found.liveness())

    async def readyz(self, _request: web.Request) -> web.Response:
        """200 while the platform works: a beat, a worker, the schema of this release, no pause."""
        try:
            found = (await self._look()).readiness()
        except (Busy, TimeoutError, OpsError, SQLAlchemyError):
            found = {"status": "not ready", "because": ["database"]}
        return web.json_response(found, status=503 if "because" in found else 200)

    async def _look(self) -> health.Health:
        async with asyncio.timeout(HEALTH_SECONDS):
            return await self.health.get()


def run(host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until INT or TERM. ``ready`` is told the address once it is open; port 0: any that is free.

    Raises SettingsError, Conflict (the port is taken), Unavailable (it cannot be opened).
    """
    logs.configure()
    settings = get_settings()
    settings.require_database_url()
    if settings.scrape_token() is None and not is_loopback(host):
        log.warning("metrics_closed", because="OPS_METRICS_TOKEN is not set, and strangers may reach this address")
    asyncio.run(_run(host, port, ready))


async def _run(host: str, port: int, ready: Callable[[str], None]) -> None:
    serve = Serve()
    runner = web.AppRunner(
        serve.app(), access_log=None, handle_signals=False, keepalive_timeout=15, shutdown_timeout=STOP_SECONDS,
        max_line_size=LINE_BYTES, max_field_size=LINE_BYTES, max_headers=64, lingering_time=1, auto_decompress=False,
    )  # fmt: skip
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    watching: asyncio.Task[None] | None = None
    try:
        await _open(runner, host, port)
        assert runner.server is not None
        watching = asyncio.ensure_future(serve.watch.run(runner.server))
        ready(_address(host, runner.addresses[0][1]))
        await stop.wait()
    finally:
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        await runner.cleanup()
        serve.threads.close()
        serve.ping_threads.close()


async def _open(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port, backlog=256).start()
    except OSError as error:
        if error.errno == 98:
            raise Conflict(f"port {port} is taken", hint="ops serve --port ANOTHER") from None
        raise Unavailable(f"{host} port {port} cannot be opened: {error.strerror or error}") from None


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _harden(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        if name == "Server" or name not in response.headers:
            response.headers[name] = value


def _closing(answer: web.HTTPException) -> web.HTTPException:
    """What is still to come of the request is not read."""
    answer.force_close()
    return answer


def _door(request: web.Request) -> str:
    """The first part of the path: what comes after may be a secret."""
    return request.path.split("/")[1][:20]
