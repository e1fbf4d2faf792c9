"""A figure of the host on which this worker runs."""

from __future__ import annotations

import asyncio
import os
import socket

import psutil

from db.probes import ProbePlan, Seen, SystemCheck
from db.states import CheckStatus
from tasks.probes.net import Down, Net, Unable

#: For how long the use of the processors is watched, in seconds.
CPU_SECONDS = 0.5
_UNITS = {"cpu": "% of the processors are in use", "memory": "% of the memory is in use",
          "disk": "% of the file system is in use", "load": "processes per processor want to run"}  # fmt: skip


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: SystemCheck = plan.config
    value = round(await _measure(config, net), 2)
    facts = {"host": socket.gethostname(), "current_value": value, "threshold_value": config.down_above}
    said = f"{value:g} {_UNITS[config.metric]}"
    if value > config.down_above:
        raise Down(said, facts=facts)
    if config.degraded_above is not None and value > config.degraded_above:
        return Seen(CheckStatus.DEGRADED, None, said, facts | {"threshold_value": config.degraded_above})
    return Seen(CheckStatus.UP, None, None, facts)


async def _measure(config: SystemCheck, net: Net) -> float:
    if config.metric == "cpu":
        before = _cpu_times()
        await asyncio.sleep(CPU_SECONDS)
        busy, whole = (after - was for after, was in zip(_cpu_times(), before, strict=True))
        return 100 * busy / whole if whole > 0 else 0.0
    if config.metric == "memory":
        return float(psutil.virtual_memory().percent)
    if config.metric == "load":
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    try:
        # A file system of another machine may hang, and shall hold up this run alone.
        return float((await net.in_thread(lambda: psutil.disk_usage(config.path))).percent)
    except OSError as error:
        raise Unable(f"the file system cannot be looked at: {error.strerror}") from None


def _cpu_times() -> tuple[float, float]:
    """Seconds in use, and all seconds, since the host's start."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guests' time is counted within that of the user as well.
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return whole - idle, whole
