"""Does a port answer, and does it say what it should?"""

from __future__ import annotations

import time

from db.probes import ProbePlan, Seen, TcpCheck
from tasks.probes.net import Down, Net
from tasks.probes.texts import finds, found_slow

#: The most of an answer that is looked at.
MAX_BYTES = 64 * 1024


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: TcpCheck = plan.config
    start = time.monotonic()
    reader, writer = await net.connect(config.host, config.port)
    try:
        connected = time.monotonic() - start
        if config.send is not None:
            writer.write(config.send.encode())
            await writer.drain()
        if config.expect is not None:
            heard = b""
            while not await finds(config.expect, heard.decode("utf-8", "replace")):
                chunk = await reader.read(4096) if len(heard) < MAX_BYTES else b""
                if not chunk:
                    raise Down("the answer is not what is expected", time.monotonic() - start)
                heard += chunk
        seconds = time.monotonic() - start
        return found_slow(seconds, config.degraded_seconds, {"connect_seconds": round(connected, 6)})
    finally:
        writer.transport.abort()
