"""`/`: the status page by HTTP, made once for a crowd."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from db.connection import get_db_session
from db.errors import OpsError
from db.services import status_pages
from db.settings import get_settings
from worker.serve import page
from worker.serve.doors import Busy, Remembered, Threads

#: However many look: one reading of the database in so many seconds.
REMEMBER_SECONDS = 5.0
HEADERS = {"Content-Security-Policy": f"{page.POLICY}; frame-ancestors 'none'", "Vary": "Accept-Encoding"}


@dataclass(frozen=True, slots=True)
class Made:
    plain: bytes
    packed: bytes


def make() -> str:
    """The page as it is now. Raises DatabaseUnavailable and the like."""
    with get_db_session(read_only=True) as session:
        found = status_pages.gather(session)
    return page.render(found, get_settings().status_title)


def _make() -> Made:
    plain = make().encode()
    return Made(plain, gzip.compress(plain, 6, mtime=0))


class Front:
    def __init__(self, threads: Threads) -> None:
        self._page = Remembered(threads, _make, REMEMBER_SECONDS)

    async def __call__(self, request: web.Request) -> web.Response:
        try:
            made = await self._page.get()
        except (Busy, OpsError, SQLAlchemyError):
            text = page.unavailable(get_settings().status_title)
            return web.Response(
                text=text, status=503, content_type="text/html", headers=HEADERS | {"Retry-After": "30"}
            )
        headers = HEADERS | {"Cache-Control": f"public, max-age={REMEMBER_SECONDS:.0f}"}
        packed = "gzip" in request.headers.get("Accept-Encoding", "")
        if packed:
            headers["Content-Encoding"] = "gzip"
        body = made.packed if packed else made.plain
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)
