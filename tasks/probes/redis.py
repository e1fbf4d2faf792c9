"""Does a Redis or Valkey server answer, and has it room?

Spoken by hand: a client library would look up names itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from db.probes import ProbePlan, RedisCheck, Seen
from db.states import CheckStatus
from tasks.probes.net import Down, Net, tls_context
from tasks.probes.texts import found_slow, quoted

MAX_ANSWER_BYTES = 64 * 1024


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: RedisCheck = plan.config
    start = time.monotonic()
    reader, writer = await net.connect(config.host, config.port, tls_context(True) if config.tls else None)

    async def ask(*words: str) -> str:
        writer.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in map(str.encode, words)))
        await writer.drain()
        return await _answer(reader, start)

    try:
        if "password" in plan.secrets:
            await ask("AUTH", *([config.user] if config.user else []), plan.secrets["password"])
        pong = await ask("PING")
        seconds = time.monotonic() - start
        if pong != "PONG":
            raise Down(f"it answers {quoted(pong)}", seconds)
        facts: dict[str, Any] = {}
        if config.max_memory_percent is not None:
            used, most = _memory(await ask("INFO", "memory"))
            if most:
                facts = {"current_value": round(100 * used / most, 1), "threshold_value": config.max_memory_percent}
                if facts["current_value"] > config.max_memory_percent:
                    said = f"it uses {facts['current_value']:g} % of the memory that it may"
                    return Seen(CheckStatus.DEGRADED, seconds, said, facts)
        return found_slow(seconds, config.degraded_seconds, facts)
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, start: float) -> str:
    """One answer; Down for an error, and for what is none."""
    try:
        line = (await reader.readuntil(b"\r\n"))[:-2].decode("utf-8", "replace")
        kind, rest = line[:1], line[1:]
        if kind == "$" and rest.isascii() and rest.isdigit() and int(rest) <= MAX_ANSWER_BYTES:
            return (await reader.readexactly(int(rest) + 2))[:-2].decode("utf-8", "replace")
    except (asyncio.LimitOverrunError, ValueError):
        kind, rest = "", ""
    if kind == "+":
        return rest
    if kind == "-":
        # Its first word says what is wrong; the rest may quote what was sent.
        raise Down(f"it answers with an error: {quoted(rest.split(' ')[0], 40)}", time.monotonic() - start)
    raise Down("the answer is not that of a Redis server", time.monotonic() - start)


def _memory(info: str) -> tuple[int, int]:
    """Bytes in use, and the limit (0: none)."""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    used, most = fields.get("used_memory", ""), fields.get("maxmemory", "")
    return (int(used) if used.isdigit() else 0), (int(most) if most.isdigit() else 0)
