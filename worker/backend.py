"""AsyncResult reads the ledger: there is no second truth.

::

    queued, never tried   PENDING      running     STARTED      failed      FAILURE
    queued again          RETRY        succeeded   SUCCESS      cancelled   REVOKED

An id that the ledger does not know is PENDING, as with any of Celery's backends.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import states
from celery.backends.base import Backend, SyncBackendMixin
from celery.exceptions import TaskRevokedError
from sqlalchemy import select

from db.connection import get_db_session
from db.errors import InvalidInput
from db.models import Job
from db.states import JobState


class JobError(Exception):
    """What ``AsyncResult.get()`` raises for a failed job: its outcome and its error."""


class LedgerBackend(SyncBackendMixin, Backend):
    """Reads; never writes: the ledger's own functions do that."""

    supports_native_join = False
    supports_autoexpire = True
    persistent = True

    def __init__(self, app: Any = None, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app=app, url=url, **kwargs)

    def _store_result(self, *_args: Any, **_kwargs: Any) -> None:
        """The transition that ended the job has stored it."""

    def _forget(self, task_id: str) -> None:
        """A job is kept for as long as its retention says."""

    def ensure_chords_allowed(self) -> None:
        """A chord waits for results as a message's business."""
        raise InvalidInput("no chord here: a durable task enqueues the next job from its body instead")

    def wait_for_pending(self, result: Any, **options: Any) -> Any:
        """As for any result; one that can never come is not waited for."""
        if self._row(result.id) is None:
            raise NotImplementedError(f"there is no job {result.id}, and this app keeps no results of other tasks")
        return super().wait_for_pending(result, **options)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "task_id": task_id, "status": states.PENDING, "result": None, "traceback": None, "children": [],
        }  # fmt: skip
        row = self._row(task_id)
        if row is None:
            return meta
        meta |= {"name": row.task, "worker": row.worker, "retries": max(row.attempt - 1, 0)}
        if row.finished_at is not None:
            meta["date_done"] = row.finished_at.isoformat()
        match row.state:
            case JobState.QUEUED:
                return meta | {"status": states.RETRY if row.attempt else states.PENDING}
            case JobState.RUNNING:
                return meta | {"status": states.STARTED}
            case JobState.SUCCEEDED:
                return meta | {"status": states.SUCCESS, "result": row.result}
            case JobState.CANCELLED:
                return meta | {"status": states.REVOKED, "result": TaskRevokedError(row.error or "cancelled")}
            case _:
                return meta | {"status": states.FAILURE, "result": JobError(f"{row.outcome}: {row.error}")}

    @staticmethod
    def _row(task_id: str) -> Any:
        try:
            key = UUID(str(task_id))
        except ValueError:
            return None
        columns = (Job.task, Job.state, Job.outcome, Job.attempt, Job.error, Job.result, Job.worker, Job.finished_at)
        with get_db_session() as session:
            return session.execute(select(*columns).where(Job.id == key)).one_or_none()
