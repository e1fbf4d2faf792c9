"""How to check: one module per kind, each with ``async def look(plan, net)``; neither Celery nor sessions.

A probe answers what it has seen, raises Down where the target says no, or Unable where the probe itself could not do
its work: our resolver, our limits, our rules. Messages are one line for people and hold nothing of a secret; what
strangers send is quoted only without control characters.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Sequence
from importlib import import_module

from db.probes import ProbePlan, Seen
from db.states import CheckKind, CheckStatus
from tasks.probes.net import Down, Net, Unable, waiting
from tasks.probes.stall import Stall

_MODULES = {kind: f"tasks.probes.{kind.value}" for kind in CheckKind}
#: A run that timed out, or was too slow, while this process stood still for so much of the time has seen nothing.
STALLED_SHARE = 0.25
#: What says something about this host, not about the target.
_OURS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
    errno.ENETUNREACH,
    errno.ENETDOWN,
}


def run(plans: Sequence[ProbePlan], net: Net) -> dict[int, Seen]:
    """Look at all of them at once, each for as long as it may take; what they have seen, by check."""
    return asyncio.run(_run(plans, net))


async def _run(plans: Sequence[ProbePlan], net: Net) -> dict[int, Seen]:
    async with net, Stall() as stall:
        seen = await asyncio.gather(*(_look(plan, net, stall) for plan in plans))
    return {plan.check_id: each for plan, each in zip(plans, seen, strict=True)}


async def _look(plan: ProbePlan, net: Net, stall: Stall) -> Seen:
    stood_still = stall.seconds()
    start = time.monotonic()
    waits: list[str] = []
    waiting.set(waits)
    try:
        look = import_module(_MODULES[plan.kind]).look
        async with asyncio.timeout(plan.timeout_seconds):
            seen: Seen = await look(plan, net)
    except TimeoutError:
        held_up = stall.seconds() - stood_still
        if held_up > STALLED_SHARE * plan.timeout_seconds:
            return _stood_still(held_up)
        if waits:
            return Seen(CheckStatus.UNKNOWN, None, "names cannot be looked up here in time")
        return Seen(CheckStatus.DOWN, None, f"no answer within {plan.timeout_seconds:g} s")
    except Down as error:
        return Seen(CheckStatus.DOWN, error.latency_seconds, str(error), error.facts)
    except Unable as error:
        return Seen(CheckStatus.UNKNOWN, None, str(error))
    except ImportError as error:
        return Seen(CheckStatus.UNKNOWN, None, f"this worker lacks {error.name}; install the extra `probes`")
    except (OSError, EOFError, asyncio.IncompleteReadError) as error:
        return explain(error, time.monotonic() - start)
    except Exception as error:  # noqa: BLE001 - one probe's defect is not the others', and not the target's
        return Seen(CheckStatus.UNKNOWN, None, f"the probe failed: {type(error).__name__}")
    held_up = stall.seconds() - stood_still
    if seen.is_slow and held_up > STALLED_SHARE * (seen.latency_seconds or 0.0):
        return _stood_still(held_up)  # the time was ours
    return seen


def _stood_still(seconds: float) -> Seen:
    return Seen(CheckStatus.UNKNOWN, None, f"this worker stood still for {seconds:.1f} s")


def explain(error: Exception, seconds: float | None = None) -> Seen:
    """What a network's error says of the target, or of us. Without the address, and without a stranger's words."""
    match error:
        case ConnectionRefusedError():
            return Seen(CheckStatus.DOWN, seconds, "connection refused")
        case ConnectionError() | EOFError():
            return Seen(CheckStatus.DOWN, seconds, "the connection was closed")
        case socket.gaierror():
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return Seen(CheckStatus.DOWN, None, "the name has no address")
            return Seen(CheckStatus.UNKNOWN, None, "names cannot be looked up here")
        case ssl.SSLCertVerificationError():
            return Seen(CheckStatus.DOWN, seconds, f"its certificate is not trusted: {error.verify_message[:100]}")
        case ssl.SSLError():
            return Seen(CheckStatus.DOWN, seconds, "no secure connection")
        case OSError() if error.errno in _OURS:
            return Seen(CheckStatus.UNKNOWN, None, f"this host cannot connect: {error.strerror}")
        case OSError():
            return Seen(CheckStatus.DOWN, seconds, error.strerror or "no connection")
        case _:
            return Seen(CheckStatus.UNKNOWN, None, f"the probe failed: {type(error).__name__}")
