"""Work that would hold up an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.util.concurrency import await_, in_greenlet

T = TypeVar("T")


def off_loop(function: Callable[..., T], *arguments: object) -> T:
    """Call it here, or, where an event loop waits for this code (``AsyncSession.run_sync``), in a thread, so that the
    loop goes on meanwhile. Hold no lock of a thread around it: the loop's other tasks run in the same one."""
    if in_greenlet():
        return await_(asyncio.to_thread(function, *arguments))
    return function(*arguments)
