"""The beat table, one line per tick, and a beat that keeps no file.

Beat is a metronome: what is due, and since when, stands in the database, where each tick's first statement lets one
caller per interval through. So any number of beats may run, and a lost or doubled tick is harmless.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any
from uuid import uuid4

import psycopg
import structlog
from celery.beat import Scheduler

from db.connection import open_ledger
from db.ledger import host_key
from db.settings import get_settings
from tasks.supervisor import now
from worker.alive import touch
from worker.lifecycle import or_leave

log = structlog.get_logger()

#: name: (task, seconds)
TICKS = {
    "alerts": ("tasks.alerts.evaluate", 15.0),
    "checks": ("tasks.checks.dispatch", 2.0),
    "notifications": ("tasks.notifications.dispatch", 5.0),
    "maintenance": ("tasks.maintenance.tidy", 300.0),
    "metrics": ("tasks.metrics.count", 15.0),
    "schedules": ("tasks.schedules.fire", 1.0),
    "seal": ("tasks.audit.seal", 10.0),
}

#: Less, and hosts whose clocks differ by a second would hear no tick of one second at all.
LEAST_EXPIRES_SECONDS = 10.0
#: A tick that nobody heard within its interval is superseded by the next.
BEAT_SCHEDULE = {
    name: {"task": task, "schedule": seconds, "options": {"expires": max(seconds, LEAST_EXPIRES_SECONDS)}}
    for name, (task, seconds) in TICKS.items()
}
SEEN_EVERY_SECONDS = 5.0


class Metronome(Scheduler):
    """Celery's scheduler in memory, which tells the database that it lives."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._key = str(uuid4())
        self._seen_at = 0.0
        self._ledger = or_leave(lambda: open_ledger("ops beat"))
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        self.install_default_entries(self.data)
        self.merge_inplace(self.app.conf.beat_schedule)

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        self._say_alive()
        return super().tick(*args, **kwargs)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        # Beat dies of a broker that is away; a metronome goes on.
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001 - the next tick tries again
            log.warning("tick_not_sent", tick=entry.name, error=f"{type(error).__name__}: {error}"[:200])

    def _ensure_connected(self) -> Any:
        # Celery waits here until the broker is back; a metronome that waits is taken for dead.
        return self.connection

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._ledger.say_gone(self._key)
        super().close()

    def _say_alive(self) -> None:
        if now() - self._seen_at < SEEN_EVERY_SECONDS:
            return
        self._seen_at = now()
        name = f"beat@{socket.gethostname()}"
        try:
            self._ledger.say_alive(self._key, "beat", name, host_key(), os.getpid(), {})
        except psycopg.Error as error:
            log.warning("database_away", during="beat", error=type(error).__name__)
        else:
            touch(get_settings().alive_file)
