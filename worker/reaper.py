"""The reaper: kills what outlives its lease. A thread of a worker's main process that waits for nobody's answer.

A durable task's body runs in a child of the pool (or in the main process itself, with `-P solo` and `-P threads`).
When its lease has run out, the next holder of its key may start: so it must be dead by then, whatever it does, and
whether or not the database or the broker can be reached.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import structlog

from tasks.supervisor import now
from worker.board import board

log = structlog.get_logger()

LOOK_SECONDS = 0.25


def start() -> None:
    threading.Thread(target=_run, name="ops-reaper", daemon=True).start()


def _run() -> None:
    pause = threading.Event()
    while not pause.wait(LOOK_SECONDS):
        for pid in board.overdue(now()):
            log.error("lease_ran_out", pid=pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
