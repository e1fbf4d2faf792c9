"""The ledger as sessions see it: enqueue in the caller's transaction, look, cancel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.errors import InvalidInput, NotFound
from db.ledger import Bell
from db.models import Job
from db.repositories.base import Page, keyset
from db.states import JobState

#: Where a session keeps the bells to ring after its commit; the worker package rings them, if it is there.
ENQUEUED = "ops_enqueued"
MAX_ARGS_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job to be enqueued. Times in seconds; ``None`` for a key means none; see LEDGER in ``docs``."""

    task: str
    queue: str
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    id: UUID | None = None
    run_at: datetime | None = None
    expires_at: datetime | None = None
    priority: int = 5
    lock_key: str | None = None
    unique_key: str | None = None
    unique_while: str = "live"
    idempotent: bool = False
    max_attempts: int = 3
    max_rescues: int = 2
    timeout_seconds: int = 3600
    lease_seconds: float = 9.0
    backoff_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job that stands for the request: a new one, or the one that holds the unique key already."""

    id: UUID
    created: bool


_ENQUEUE = text(
    f"""SELECT id, created FROM {Job.__table__.schema}.ops_enqueue(
    p_task => :task, p_args => :args, p_kwargs => :kwargs, p_queue => :queue, p_id => :id, p_run_at => :run_at,
    p_expires_at => :expires_at, p_priority => :priority, p_lock_key => :lock_key, p_unique_key => :unique_key,
    p_unique_while => :unique_while, p_idempotent => :idempotent, p_max_attempts => :max_attempts,
    p_max_rescues => :max_rescues, p_timeout_seconds => :timeout_seconds, p_lease_seconds => :lease_seconds,
    p_backoff_seconds => :backoff_seconds, p_rung => true)"""  # noqa: S608 - the schema's name is checked by settings
).bindparams(bindparam("args", type_=JSONB), bindparam("kwargs", type_=JSONB))

_REFUSED = {
    "ck_jobs_names": "a task's and a queue's name have 1 to 255 bytes, and a queue's does not begin with amq.",
    "ck_jobs_times": "a job's times lie between the years 2000 and 9999",
    "ck_jobs_seconds": "a timeout is at least a second, a lease 1 to 86400 seconds, a backoff 0 to 86400",
    "ck_jobs_priority": "a priority is 0 (first) to 9",
    "ck_jobs_attempts": "max_attempts is at least 1, max_rescues at least 0",
    "ck_jobs_unique_while": "unique_while is live or queued",
}


class JobRepository:
    """Jobs in one session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def enqueue(self, spec: JobSpec) -> Enqueued:
        """Write a job in the session's transaction; it exists when that commits, and is rung then.

        Enqueue last, and several with unique keys in the order of the keys: a taken key waits for the other
        caller's transaction. Raises InvalidInput for arguments that JSON cannot hold.
        """
        try:
            size = len(json.dumps([list(spec.args), spec.kwargs], allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{spec.task}: arguments must be plain JSON: {error}") from None
        if size > MAX_ARGS_BYTES:
            raise InvalidInput(f"{spec.task}: {size} bytes of arguments; at most {MAX_ARGS_BYTES} are kept")
        apply_context(self.session)
        values = {
            "task": spec.task,
            "args": list(spec.args),
            "kwargs": spec.kwargs,
            "queue": spec.queue,
            "id": spec.id or uuid4(),
            "run_at": spec.run_at,
            "expires_at": spec.expires_at,
            "priority": spec.priority,
            "lock_key": spec.lock_key,
            "unique_key": spec.unique_key,
            "unique_while": spec.unique_while,
            "idempotent": spec.idempotent,
            "max_attempts": spec.max_attempts,
            "max_rescues": spec.max_rescues,
            "timeout_seconds": spec.timeout_seconds,
            "lease_seconds": spec.lease_seconds,
            "backoff_seconds": spec.backoff_seconds,
        }
        try:
            row = self.session.execute(_ENQUEUE, values).one()
        except IntegrityError as error:
            # What the database says of a refused row shows all of it, arguments included.
            name = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
            raise InvalidInput(f"{spec.task}: {_REFUSED.get(str(name), f'refused by {name}')}") from None
        if row.created and spec.run_at is None:
            bell = Bell(row.id, spec.task, spec.queue, spec.priority)
            self.session.info.setdefault(ENQUEUED, []).append(bell)
        return Enqueued(row.id, row.created)

    def cancel(self, job_id: UUID, reason: str | None = None) -> JobState | None:
        """Cancel a queued job, or ask for the end of a running one; None when it had ended already."""
        apply_context(self.session)
        function = getattr(func, Job.__table__.schema or "public").ops_cancel
        state, bells = self.session.execute(
            select(text("state"), text("bells")).select_from(function(job_id, reason).table_valued("state", "bells"))
        ).one()
        rung = [Bell(UUID(b["id"]), b["task"], b["queue"], b["priority"]) for b in bells]
        if rung:
            self.session.info.setdefault(ENQUEUED, []).extend(rung)
        return JobState(state) if state else None

    def list_(
        self, *, state: str | None = None, task: str | None = None, limit: int = 50, before: int | None = None
    ) -> Page[Job]:
        """Jobs newest first; ``before`` is the ``next`` of the page before. Raises InvalidInput for no state."""
        query = select(Job)
        if state is not None:
            query = query.where(Job.state == state)
        if task is not None:
            query = query.where(Job.task == task)
        return keyset(self.session, query, Job.seq, limit, before)

    def get(self, job_id: UUID) -> Job | None:
        return self.session.get(Job, job_id)

    def require(self, job_id: UUID) -> Job:
        """Raises NotFound."""
        job = self.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        return job
