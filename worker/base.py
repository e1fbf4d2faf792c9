"""OpsTask: what every task of the platform has.

A durable task's message is a doorbell. The worker claims the row, begins, runs the body outside of any transaction
while a heartbeat holds the lease, and finishes; each of these is one statement with its audit entry. Everything the
body writes through :mod:`db` carries the context of whoever asked for the job.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import structlog
from billiard.common import terminate_handler_fired
from celery import Task
from celery._state import get_current_worker_task
from celery.exceptions import Ignore, Retry, WorkerShutdown
from celery.result import AsyncResult
from sqlalchemy.orm import Session

from db.connection import current_context, get_db_session
from db.errors import InvalidInput
from db.ledger import Bell, host_key, until
from db.repositories.jobs import JobRepository, JobSpec
from db.states import JobState, Outcome
from tasks.outcomes import Ended, NotBegun
from tasks.supervisor import now
from worker.backend import LedgerBackend
from worker.board import Dropped, board
from worker.lease import HeldJob, JobInterrupted, holders_here, runtime
from worker.publish import ring

log = structlog.get_logger()

#: How long a doorbell may wait for a database that does not answer; the relay rings again anyway.
CLAIM_SECONDS = 5.0
MAX_RESULT_BYTES = 256 * 1024
_OPTIONS = frozenset(
    {"countdown", "eta", "expires", "queue", "priority", "task_id", "lock_key", "unique_key", "unique_while",
     "timeout", "session"}
)  # fmt: skip
_REFUSED = ("link", "link_error", "chain", "chord")
_DROPPED = {
    "duplicate": Dropped.DUPLICATE,
    "unknown": Dropped.UNKNOWN,
    "wrong_task": Dropped.WRONG_TASK,
}
_MISSING = object()

_held: ContextVar[HeldJob | None] = ContextVar("ops_held_job", default=None)


class JobFailed(Exception):
    """The job did not succeed; the ledger knows why."""


@dataclass
class End:
    """How an attempt ended. ``leaves``: the process is being ended, and this is to be raised once that is recorded."""

    outcome: Outcome
    error: str | None = None
    result: Any = None
    retry_in: timedelta | None = None
    leaves: SystemExit | None = None


class OpsTask(Task):
    """A Celery task; with ``durable=True`` one that cannot be lost.

    ``idempotent``: its effect may start again after a loss, and it is retried after failures.
    ``max_attempts``, ``max_rescues``: how many attempts may fail; how many may be lost or interrupted.
    ``timeout``, ``lease``, ``backoff``: seconds; the lease is how long the platform waits for a silent holder.
    ``begins_itself``: the body calls ``self.job.begin()`` right before its effect.
    ``supervised``: it does so, and runs the effect in a process of its own that it ends when asked to.
    ``heeds``: of one that is not durable, whether a message's arguments are such as ours have (None: any that fit).
    """

    abstract = True
    durable = False
    idempotent = False
    max_attempts = 3
    max_rescues = 2
    timeout = 3600
    lease = 9.0
    backoff = 2.0
    begins_itself = False
    queue: Any = None
    supervised = False
    heeds: Callable[..., bool] | None = None

    Strategy = "worker.consumer:strategy"
    throws = (JobFailed,)
    ignore_result = True
    acks_late = False
    store_errors_even_if_ignored = False

    @property
    def job(self) -> HeldJob:
        """The job whose body is running. Raises RuntimeError outside of one."""
        job = _held.get()
        if job is None:
            raise RuntimeError(f"{self.name} does not run as a job")
        return job

    @property
    def backend(self) -> Any:
        """Durable tasks answer from the ledger, whatever backend the app has for the others."""
        return _ledger_backend(self.app) if self.durable else self._get_app().backend

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value

    def enqueue(self, session: Session, *args: Any, **kwargs: Any) -> UUID:
        """Write the job in the caller's transaction: it exists when that commits. Returns its id."""
        return self._write(session, args, kwargs, {})

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult:
        """As in Celery. A durable task is written in a transaction of its own (or in ``session=``), then published.

        Beside Celery's ``countdown eta expires queue priority task_id``: ``lock_key`` (one at a time, the others
        queue), ``unique_key`` with ``unique_while="live"|"queued"``, ``timeout``.
        """
        if not self.durable or self._get_app().conf.task_always_eager:
            return super().apply_async(args, kwargs, **options)
        if refused := [name for name in _REFUSED if options.get(name)]:
            raise InvalidInput(
                f"{self.name} is durable and takes no {refused[0]}: enqueue the next job from its body instead"
            )
        session: Session | None = options.pop("session", None)
        if session is not None:
            job_id = self._write(session, args or (), kwargs or {}, options)
        else:
            with get_db_session() as own:
                job_id = self._write(own, args or (), kwargs or {}, options)
        return self.AsyncResult(str(job_id))

    def retry(self, args: Any = None, kwargs: Any = None, exc: Exception | None = None, **options: Any) -> Retry:
        """As in Celery; for a durable task the ledger keeps the count (``max_attempts``) and the time."""
        if not self.durable:
            return super().retry(args, kwargs, exc=exc, **options)
        countdown = options.get("countdown")
        again = Retry(str(exc or "retry"), exc, countdown if countdown is not None else options.get("eta"))
        if options.get("throw", True):
            raise again from exc
        return again

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if not self.durable or request.is_eager:
            return self.run(*args, **kwargs)
        held = _held.get()
        if request.called_directly or (held is not None and str(held.id) == request.id):
            if str(getattr(get_current_worker_task(), "name", "")).startswith("celery."):
                # `celery.starmap` and its like: a message would run the body without any row.
                raise InvalidInput(f"{self.name} is durable: enqueue it")
            return self.run(*args, **kwargs)
        job = self._claim(UUID(request.id), request.hostname or "celery")
        request.update(args=job.args, kwargs=job.kwargs, retries=job.attempt - 1)
        with contextlib.ExitStack() as stack:
            stack.callback(_held.reset, _held.set(job))
            stack.enter_context(_context_of(job, request.hostname))
            runtime().hold(job)
            stack.callback(runtime().release, job)
            end = self._run_body(job)
            job.ended()
            return self._finish(job, end)

    def _write(
        self, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> UUID:
        if unknown := {name for name in options if options[name] is not None} - _OPTIONS - _HARMLESS:
            raise InvalidInput(f"{self.name} is durable and takes no {', '.join(sorted(unknown))}")
        if self.typing:
            try:
                inspect.signature(self.run).bind(*args, **kwargs)
            except TypeError as error:
                raise InvalidInput(f"{self.name}: {error}") from None
        queue = options.get("queue") or self.queue or self._route()
        priority = options.get("priority", self.priority)
        spec = JobSpec(
            task=str(self.name),
            queue=getattr(queue, "name", queue),
            args=list(args),
            kwargs=dict(kwargs),
            id=UUID(str(options["task_id"])) if options.get("task_id") else None,
            run_at=_moment(options.get("eta") or options.get("countdown")),
            expires_at=_moment(options.get("expires")),
            priority=5 if priority is None else priority,
            lock_key=options.get("lock_key"),
            unique_key=options.get("unique_key"),
            unique_while=options.get("unique_while") or "live",
            idempotent=self.idempotent,
            max_attempts=self.max_attempts,
            max_rescues=self.max_rescues,
            timeout_seconds=int(options.get("timeout") or self.timeout),
            lease_seconds=self.lease,
            backoff_seconds=self.backoff,
        )
        return JobRepository(session).enqueue(spec).id

    def _route(self) -> str:
        app = self._get_app()
        queue = app.amqp.router.route({}, self.name).get("queue")
        return str(getattr(queue, "name", queue) or app.conf.task_default_queue)

    def _claim(self, job_id: UUID, worker: str) -> HeldJob:
        """Take the job, or raise Ignore: the bell was not for us."""
        with board.claiming() as may:
            if not may:
                raise Ignore  # this worker ends, or drains; the relay of another one rings again
            return self._claim_now(job_id, worker)

    def _claim_now(self, job_id: UUID, worker: str) -> HeldJob:
        token = uuid4()
        # Before the first byte is sent: the lease that we count must end before the one in the database.
        claimed_at = now()
        give_up = claimed_at + CLAIM_SECONDS
        try:
            claim = runtime().ledger.claim(
                job_id, str(self.name), token, worker=worker, host=host_key(), holders=holders_here(),
                patience=until(lambda: now() > give_up),
            )  # fmt: skip
        except psycopg.Error as error:
            log.warning("claim_failed", job_id=str(job_id), error=type(error).__name__)
            raise Ignore from None
        ring(claim.bells)
        if claim.verdict != "run":
            if claim.verdict in _DROPPED:
                board.count(_DROPPED[claim.verdict])
            log.debug("doorbell_spent", job_id=str(job_id), verdict=claim.verdict)
            raise Ignore
        return HeldJob(job_id, str(self.name), token, claim, claimed_at)

    def _run_body(self, job: HeldJob) -> End:
        """Begin, run, and say how it went."""
        result: Any = _MISSING
        try:
            if not (self.begins_itself or self.supervised):
                job.begin()
            with contextlib.nullcontext() if self.supervised else job.interruptible():
                result = self.run(*job.args, **job.kwargs)
        except NotBegun as refusal:
            return _stopped(refusal.reason, "before it began")
        except Ended as end:
            return End(end.outcome, end.error)
        except Retry as retry:
            return End(Outcome.FAILED, _describe(retry.exc or retry), retry_in=_pause(retry.when))
        except JobInterrupted:
            if result is _MISSING:  # else the body had returned already
                return _stopped(job.stop_reason, "while it ran")
        except BaseException as error:  # noqa: BLE001
            if isinstance(error, SystemExit) and (terminate_handler_fired() or isinstance(error, WorkerShutdown)):
                return _stopped("interrupted", "while it ran", leaves=error)
            # Whatever the body raises is its outcome, also what would end a process.
            log.info("job_raised", job_id=str(job.id), task=self.name, error=type(error).__name__)
            return End(Outcome.FAILED, _describe(error))
        return End(Outcome.OK, result=self._plain(job, result))

    def _plain(self, job: HeldJob, result: Any) -> Any:
        """A result as the ledger keeps it: JSON of a bounded size, else nothing."""
        try:
            if len(json.dumps(result, allow_nan=False)) <= MAX_RESULT_BYTES:
                return result
            reason = "too large"
        except (TypeError, ValueError, RecursionError):
            reason = "not JSON"
        log.warning("result_not_kept", job_id=str(job.id), task=self.name, reason=reason)
        return None

    def _finish(self, job: HeldJob, end: End) -> str:
        """Record the end, ring the next, and tell Celery what became of it: the state; the result stays here."""
        try:
            try:
                state, bells = self._record(job, end)
            except SystemExit as error:  # TERM in the middle; what was sent may be repeated
                end.leaves = error
                state, bells = self._record(job, end)
        except psycopg.Error as error:
            # This worker ends, and the database is away. The lease runs out, and the rescue says what is known.
            log.warning(
                "outcome_not_recorded", job_id=str(job.id), outcome=end.outcome.value, error=type(error).__name__
            )
            raise Ignore from None
        runtime().release(job)
        ring(bells)
        log.info("job_ended", job_id=str(job.id), task=self.name, outcome=end.outcome.value, state=state)
        if end.leaves is not None:
            raise end.leaves
        if state == JobState.QUEUED:
            raise Retry(f"{end.outcome.value}; queued again")
        if state != JobState.SUCCEEDED:
            raise JobFailed(f"{state}: {end.outcome.value}")
        return state

    def _record(self, job: HeldJob, end: End) -> tuple[str, tuple[Bell, ...]]:
        def finish(result: Any) -> tuple[str, tuple[Bell, ...]]:
            return runtime().ledger.finish(
                job.id, job.attempt, job.token, end.outcome.value, error=end.error, result=result,
                retry_in=end.retry_in, patience=until(runtime().gave_up),
            )  # fmt: skip

        try:
            return finish(end.result)
        except psycopg.DataError:
            # JSON that PostgreSQL does not take: a NUL, half a character, a number of a million digits.
            log.warning("result_not_kept", job_id=str(job.id), task=self.name, reason="not JSON for the database")
            return finish(None)


#: Options that Celery itself adds and that mean nothing to a job.
_HARMLESS = frozenset(
    {"producer", "connection", "router", "result_cls", "add_to_parent", "group_id", "group_index", "retries",
     "reply_to", "root_id", "parent_id", "route_name", "shadow", "task_type", "headers", "ignore_result",
     "publisher", "retry", "retry_policy", "serializer", "compression", "replaced_task_nesting", "stamped_headers",
     "routing_key", "exchange", "delivery_mode", "mandatory", "immediate",
     *_REFUSED}
)  # fmt: skip

_backends: dict[int, LedgerBackend] = {}


def _ledger_backend(app: Any) -> LedgerBackend:
    backend = _backends.get(id(app))
    if backend is None:
        backend = _backends[id(app)] = LedgerBackend(app=app)
    return backend


def current_job() -> HeldJob | None:
    """The job whose body runs in this context."""
    return _held.get()


@contextlib.contextmanager
def _context_of(job: HeldJob, worker: str | None) -> Any:
    """Everything the body writes is done for whoever asked for the job, and says through which task."""
    context = job.context or {"actor_type": "worker", "actor": worker or "worker"}
    reset = current_context.set(context | {"task_id": str(job.id)})
    with structlog.contextvars.bound_contextvars(job_id=str(job.id), attempt=job.attempt):
        try:
            yield
        finally:
            current_context.reset(reset)


def _stopped(reason: str | None, when: str, leaves: SystemExit | None = None) -> End:
    match reason:
        case "cancelled":
            return End(Outcome.CANCELLED, f"cancelled {when}")
        case "timeout":
            return End(Outcome.TIMEOUT, f"its timeout passed {when}")
        case "lost":
            return End(Outcome.INTERRUPTED, f"its lease was lost {when}")
        case _:
            return End(Outcome.INTERRUPTED, f"the worker was shut down {when}", leaves=leaves)


def _describe(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}"[:4000] if text else type(error).__name__


def _moment(when: Any) -> datetime | None:
    """Seconds from now, or a time (naive means UTC, as Celery has it), as an aware time."""
    if when is None:
        return None
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    if isinstance(when, datetime):
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    return datetime.now(UTC) + timedelta(seconds=float(when))


def _pause(when: Any) -> timedelta | None:
    moment = _moment(when)
    return max(moment - datetime.now(UTC), timedelta()) if moment else None
