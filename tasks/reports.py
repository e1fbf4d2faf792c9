"""What a driver says of hosts, on its way into the database: stored in order, each report answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError

from db.connection import get_db_session
from db.errors import DatabaseUnavailable, OpsError
from db.ledger import PASSING
from db.services import rollouts
from tasks.effect import Effect
from tasks.masking import Masker

log = structlog.get_logger()

#: A report that could not be written is tried again this often.
AGAIN_SECONDS = 0.5
CLOSE_SECONDS = 120.0


class Reports:
    """The reports of one attempt. A driver waits for the answer to some of them before it goes on, so each is written
    at once; while the database is away it waits, and so does the driver."""

    def __init__(self, deployment_id: int, job: Any, masker: Masker, effect: Effect) -> None:
        self.deployment_id = deployment_id
        self.job = job
        self._masker = masker
        self._effect = effect
        self._waiting: deque[dict[str, Any]] = deque()
        self._again_at = 0.0
        #: What is to be said with the outcome.
        self.note = ""

    def add(self, event: dict[str, Any]) -> None:
        self._waiting.append(event)
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        while self._waiting and time.monotonic() >= self._again_at:
            event = self._waiting[0]
            try:
                stored = self._store(event)
            except DatabaseUnavailable:
                self._again_at = time.monotonic() + AGAIN_SECONDS
                return
            except DBAPIError as error:
                if isinstance(error.orig, PASSING):
                    self._again_at = time.monotonic() + AGAIN_SECONDS
                    return
                log.warning("host_report_refused", deployment_id=self.deployment_id, error=type(error.orig).__name__)
                stored = False
            except OpsError as error:
                log.warning("host_report_refused", deployment_id=self.deployment_id, error=type(error).__name__)
                stored = False
            self._waiting.popleft()
            if not stored:
                self.note = "; not all that it said of its hosts could be recorded"
            if isinstance(event.get("id"), int):
                self._effect.answer(event["id"], stored=stored)

    def close(self, is_in_haste: Callable[[], bool] = lambda: False) -> None:
        """Write the rest; while the database is away, go on trying for a while."""
        give_up = time.monotonic() + CLOSE_SECONDS
        self.flush()
        while self._waiting and time.monotonic() < give_up and not is_in_haste():
            time.sleep(AGAIN_SECONDS)
            self.flush()
        if self._waiting:
            self.note = "; not all that it said of its hosts could be recorded"
            log.warning("host_reports_lost", deployment_id=self.deployment_id, count=len(self._waiting))

    def _store(self, event: dict[str, Any]) -> bool:
        with get_db_session() as session:
            return rollouts.record(
                session, deployment_id=self.deployment_id, job_id=self.job.id, attempt=self.job.attempt,
                token=self.job.token, hosts=event.get("hosts"), mask=self._masker.mask,
            )  # fmt: skip
