"""The relay and the rescue: a timer in every worker's main process, independent of the broker's mood.

Once a second, SQL only, any number of them: ring what is due, look at what may have died, tell that this process
lives. Liveness of the whole platform rests on this loop alone; everything else that rings only saves time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path
from uuid import uuid4

import psycopg
import structlog

from db.connection import is_outage, open_ledger
from db.keyring import get_keyring
from db.ledger import Bell, host_key, is_gone
from db.settings import find_data_dir, get_settings
from tasks.supervisor import now
from worker.alive import touch
from worker.board import board
from worker.gate import Gate
from worker.publish import Line
from worker.watchman import Watchman

log = structlog.get_logger()

TICK_SECONDS = 1.0
#: At most so many doorbells lie in a queue, so that a backlog is not buried under its own bells.
WINDOW = 200
SEEN_EVERY_SECONDS = 5.0
REPORT_EVERY_SECONDS = 60.0
#: A worker whose main loop was quiet for so long does not hear its queues.
PULSE_SECONDS = 10.0


class Relay:
    """The loop of one process. ``kind`` is ``worker`` or ``relay``; ``name`` is what the status shows."""

    def __init__(self, line: Line, name: str, kind: str = "worker", queues: tuple[str, ...] = ()) -> None:
        self.line = line
        self.name = name
        self.kind = kind
        self.queues = queues
        # What this worker can open; its start has checked them. A relay alone opens nothing and wants no key.
        self._keys = {"keys": get_keyring().ids} if kind == "worker" else {}
        self.key = str(uuid4())
        self.is_ready = kind == "relay"
        self.gate = Gate(queues) if kind == "worker" else None
        self._is_drained = False
        self._pulsed_at: float | None = None
        self._alive_file = get_settings().alive_file
        self._ledger = open_ledger("ops relay")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen_at = 0.0
        self._reported_at = now()
        self._is_away = False
        self._relayed = 0
        self._rescued = 0
        self._watchman = Watchman(line, queues)

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name="ops-relay", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """The worker hears its queues from now on; say so at once."""
        self.is_ready = True
        self._seen_at = 0.0

    def pulse(self) -> None:
        """In the worker's main loop, once a second while it is connected to the broker."""
        self._pulsed_at = now()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)
            if self._thread.is_alive():
                return  # it waits for the database, and so would we
        with contextlib.suppress(psycopg.Error):
            self._report_dropped()
            self._ledger.say_gone(self.key)
        self._ledger.close()

    def run(self) -> None:
        while True:
            started = now()
            self.tick()
            if self._stop.wait(max(0.0, TICK_SECONDS - (now() - started))):
                return

    def tick(self) -> None:
        """One round. What fails is logged and tried again in the next, and keeps nothing else from its turn, unless
        there is no database at all."""
        was_away, self._is_away = self._is_away, False
        steps = (self._look, self._relay, self._drain, self._say_alive, self._report_dropped, self._watch)
        for step in steps:
            try:
                step()
            except psycopg.Error as error:
                if not (was_away or self._is_away):
                    log.warning("database_away", during="relay", error=f"{type(error).__name__}: {error}"[:200])
                self._is_away = True
                if isinstance(error, psycopg.OperationalError) and is_outage(error):
                    break
            except Exception:
                # This thread must not die of anything: without it, lost doorbells stay lost.
                log.exception("relay_failed")
        if was_away and not self._is_away:
            log.info("database_back", during="relay")
        if not self._is_away and (self.kind == "relay" or self._hears()):
            touch(self._alive_file)

    def _hears(self) -> bool:
        return self._pulsed_at is not None and now() - self._pulsed_at < PULSE_SECONDS

    def _look(self) -> None:
        held = self._ledger.held_here(host_key())
        dead = [job.token for job in held if job.holders and all(map(is_gone, job.holders))]
        moved, bells = self._ledger.rescue(dead=dead)
        for row in moved:
            log.warning("job_rescued", job_id=str(row["id"]), state=row["state"], outcome=row["outcome"])
        self._rescued += len(moved)
        self._ring(bells)

    def _relay(self) -> None:
        queues = self._ledger.due_queues()
        if not queues:
            return
        depths = self.line.depths(queues)
        if depths is None:
            return  # the broker is away: keep the bells for when it is back
        for queue, depth in depths.items():
            if depth < WINDOW:
                bells = self._ledger.relay(queue, WINDOW - depth)
                self._relayed += len(bells)
                self._ring(bells)

    def _ring(self, bells: list[Bell] | tuple[Bell, ...]) -> None:
        if bells:
            self.line.ring(bells)

    def _drain(self) -> None:
        """Take nothing new while the database says so; and say so there once that is certain."""
        if self.gate is None:
            return
        drained = self.gate.hold(self._ledger.is_to_drain(self.key))
        if drained != self._is_drained:
            self._is_drained = drained
            self._seen_at = 0.0

    def _say_alive(self) -> None:
        if now() - self._seen_at < SEEN_EVERY_SECONDS:
            return
        self._seen_at = now()
        info = {
            "queues": list(self.queues), "relayed": self._relayed, "rescued": self._rescued, "ready": self.is_ready,
            "draining": self._is_drained, **self._keys,
            "disk": _disk(),
            **({"encryption": board.encryption()} if self.kind == "worker" else {}),
        }  # fmt: skip
        self._ledger.say_alive(self.key, self.kind, self.name, host_key(), os.getpid(), info)

    def _watch(self) -> None:
        self._watchman.look(self._ledger)

    def _report_dropped(self) -> None:
        """One entry per worker, reason and minute, with a count: a flood of junk does not flood the trail."""
        if now() - self._reported_at < REPORT_EVERY_SECONDS and not self._stop.is_set():
            return
        self._reported_at = now()
        for reason, count in board.take_counts().items():
            self._ledger.audit("message.dropped", "message", reason, {"count": count}, self.name)


def _disk() -> dict[str, str | float] | None:
    """How full the disk is that this process works on; None where that cannot be seen."""
    path = find_data_dir() or Path.cwd()
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    # What is kept for root is not there for anybody else.
    return {"path": str(path), "used_percent": round(100 * usage.used / max(usage.used + usage.free, 1), 1)}
