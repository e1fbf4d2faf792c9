"""Stands in for a silent beat: nobody else would notice that nothing is due in time any more.

A part of the relay's loop in every worker that serves the platform's own queue. Where no beat has been seen for a
while, it asks for the ticks that raise alerts and tell of them, which then say that beat is silent. Any number of
watchmen and beats may ask: each tick runs once per interval.
"""

from __future__ import annotations

import structlog

from db.ledger import Ledger
from tasks.supervisor import now
from worker.publish import Line

log = structlog.get_logger()

#: The ticks without which nobody would be told.
NEEDED = ("alerts", "notifications")
LOOK_SECONDS = 5.0
#: A beat that is started anew is given so much time.
PATIENCE_SECONDS = 30.0
QUEUE = "control"


class Watchman:
    """One worker's."""

    def __init__(self, line: Line, queues: tuple[str, ...]) -> None:
        self._line = line
        self._is_on_duty = QUEUE in queues and bool(getattr(line.app, "is_platform", False))
        self._seen_at = now()
        self._looked_at = 0.0
        self._asked_at: dict[str, float] = {}
        self._is_silent = False

    def look(self, ledger: Ledger) -> None:
        """Raises psycopg.Error where the database is away; then nobody could do anything."""
        if not self._is_on_duty or now() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now()
        if ledger.is_alive("beat"):
            self._seen_at = now()
        is_silent = now() - self._seen_at > PATIENCE_SECONDS
        if is_silent != self._is_silent:
            log.warning("beat_silent" if is_silent else "beat_back")
        self._is_silent = is_silent
        if is_silent:
            self._stand_in()

    def _stand_in(self) -> None:
        from worker.schedule import TICKS  # which wants a worker's lifecycle, and that the relay

        for name in NEEDED:
            task, seconds = TICKS[name]
            if now() - self._asked_at.get(name, 0.0) >= seconds:
                self._asked_at[name] = now()
                self._line.ask(task, expires=seconds)
