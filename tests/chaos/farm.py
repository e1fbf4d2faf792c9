"""The outside world of the monitoring chaos, one process: sites that are down when the script says so, and a receiver
of webhooks that keeps what came. ``python -m tests.chaos.farm SCRIPT``: a JSON file of sites, each a list of
``[start, end]`` in seconds since 1970."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from aiohttp import web

#: A farm that stood still for so long may have made a run of the platform time out by itself.
STOOD_STILL_SECONDS = 1.0


class Farm:
    """Answers, and remembers what it has answered while it was down, by ``site/interval``, what was asked and not
    answered, and for how long it stood still itself: then it is no judge of anybody."""

    def __init__(self, script: Path) -> None:
        self.script = script
        self.truth: list[list[list[float]]] = []
        self.refused: Counter[str] = Counter()
        self.messages: list[dict[str, Any]] = []
        #: Per site: when it was asked, when it answered (None: whoever asked had gone), and what.
        self.log: dict[int, list[list[float | None]]] = defaultdict(list)
        self.stood_still: list[tuple[float, float]] = []

    @web.middleware
    async def remember(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if "number" not in request.match_info:
            return await handler(request)  # type: ignore[no-any-return]
        entry: list[float | None] = [time.time(), None, None]
        self.log[int(request.match_info["number"])].append(entry)
        answer: web.StreamResponse = await handler(request)
        entry[1:] = time.time(), answer.status
        return answer

    async def watch(self) -> None:
        """Notice being stopped or starved."""
        while True:
            before = time.time()
            await asyncio.sleep(0.1)
            if (late := time.time() - before - 0.1) > STOOD_STILL_SECONDS:
                self.stood_still.append((before, late))

    async def site(self, request: web.Request) -> web.Response:
        number, now = int(request.match_info["number"]), time.time()
        if not self.truth and self.script.exists():
            self.truth = json.loads(self.script.read_text())
        for place, (start, end) in enumerate(self.truth[number] if self.truth else ()):
            if start <= now < end:
                self.refused[f"{number}/{place}"] += 1
                return web.Response(status=503)
        return web.Response(text="ok")

    async def take(self, request: web.Request) -> web.Response:
        self.messages.append(
            {
                "channel": request.match_info["channel"],
                "id": request.headers["Idempotency-Key"],
                "at": time.time(),
                "alerts": (await request.json())["alerts"],
            }
        )
        return web.Response(text="ok")

    async def report(self, _: web.Request) -> web.Response:
        return web.json_response({"refused": self.refused, "messages": self.messages, "stood_still": self.stood_still})

    async def told(self, request: web.Request) -> web.Response:
        return web.json_response(self.log[int(request.match_info["of"])])

    async def serve(self) -> None:
        app = web.Application(middlewares=[self.remember])
        app.router.add_get(r"/site/{number:\d+}", self.site)
        app.router.add_post("/told/{channel}", self.take)
        app.router.add_get("/report", self.report)
        app.router.add_get(r"/log/{of:\d+}", self.told)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await self.watch()


if __name__ == "__main__":
    asyncio.run(Farm(Path(sys.argv[1])).serve())
