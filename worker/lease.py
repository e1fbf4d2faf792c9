"""Holding a job: its lease, its heartbeat, and how it learns that it must end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
import structlog

from db.connection import conninfo, open_ledger
from db.ledger import Claim, Ledger, process_key, until
from db.settings import get_settings
from tasks.outcomes import NotBegun
from tasks.supervisor import now
from worker.board import board

log = structlog.get_logger()

#: A heartbeat every third of the lease at most, and often enough that a cancel is seen soon.
HEARTBEAT_SECONDS = 3.0
#: How long past its timeout a job's lease may still be renewed, so that its end can be recorded; as in `ops_heartbeat`.
OVERTIME_SECONDS = 30.0
#: How often a holder looks whether its worker is to end.
LOOK_SECONDS = 0.5
#: A body is asked to end so long before its lease runs out (a fifth of a short lease); then its process is killed.
MARGIN_SECONDS = 2.0
#: How long a body may go on that is told that its lease is lost.
LOST_SECONDS = 1.0
#: How long an ending worker goes on trying to record an outcome.
PATIENCE_SECONDS = 10.0
#: Wakes a process's main thread out of a task's body. Ignored by default, and Celery's pools leave it alone.
INTERRUPT = signal.SIGURG


class JobInterrupted(BaseException):
    """Raised inside the body of a durable task that must end; the job's ``stop_reason`` says why.

    Not an Exception, so that a body's ``except Exception`` does not swallow it; ``finally`` runs.
    """


class HeldJob:
    """A job that this process holds. Ends are points on :func:`tasks.supervisor.now`'s clock.

    ``fence`` grows with every claim: hand it to what the job changes, and let that refuse a smaller one.
    ``stop_reason`` is None, or why the job must end: cancelled, timeout, interrupted (the worker ends) or lost.
    """

    def __init__(self, job_id: UUID, task: str, token: UUID, claim: Claim, claimed_at: float) -> None:
        self.id = job_id
        self.task = task
        self.token = token
        self.attempt = claim.attempt
        self.fence = claim.fence
        self.args = list(claim.args)
        self.kwargs = dict(claim.kwargs or {})
        self.context = dict(claim.context or {})
        self.lock_key = claim.lock_key
        self.lease_seconds = claim.lease_seconds
        self.timeout_end = claimed_at + claim.timeout_seconds
        self.lease_end = claimed_at + claim.lease_seconds
        self.stop_reason: str | None = None
        #: True while the effect happens in this process: the lease's end must be this process's end.
        self.is_exposed = False
        self._on_renew: Callable[[float], None] | None = None
        self._on_stop: Callable[[str], None] | None = None
        self._thread = threading.get_ident()
        self._arming = threading.Lock()
        self._armed = False

    @property
    def report(self) -> dict[str, Any]:
        """What a supervisor needs to record this attempt's end by itself."""
        settings = get_settings()
        return {
            "conninfo": conninfo(), "schema": settings.database_schema,
            "pooled": settings.database_pooler == "transaction",
            "job": str(self.id), "attempt": self.attempt, "token": str(self.token),
        }  # fmt: skip

    @property
    def is_overdue(self) -> bool:
        """True when its lease will soon be renewed no more: say how it ended while that counts."""
        return now() > self.timeout_end + OVERTIME_SECONDS / 2

    def begin(self, *, supervisor_pid: int | None = None) -> None:
        """The last write before the effect starts. Raises NotBegun: then start nothing.

        With ``supervisor_pid`` the effect will happen in another process, which dies by itself when the lease has run
        out; otherwise it happens here, and this process is killed then.
        """
        if self.stop_reason is not None:
            raise NotBegun(self.stop_reason)
        holders = [*holders_here(), *([process_key(supervisor_pid)] if supervisor_pid is not None else [])]
        asked_at = now()
        end = self.lease_end
        try:
            answer = runtime().ledger.begin(
                self.id, self.attempt, self.token, holders, patience=until(lambda: now() > end - 1)
            )
        except psycopg.Error:
            raise NotBegun("lost") from None
        if answer != "go":
            raise NotBegun(answer)
        self.is_exposed = supervisor_pid is None
        self.renewed(asked_at + self.lease_seconds)

    def supervise(self, renew: Callable[[float], None], stop: Callable[[str], None]) -> None:
        """The effect runs in a process of its own: tell it of renewals and stops, also of those that came before."""
        self._on_renew, self._on_stop = renew, stop
        # The heartbeat writes first and looks for a listener then; here it is the other way round, so none is missed.
        renew(self.lease_end)
        if self.stop_reason is not None:
            stop(self.stop_reason)

    def renewed(self, lease_end: float) -> None:
        self.lease_end = min(lease_end, self.timeout_end + OVERTIME_SECONDS)
        if self._on_renew is not None:
            self._on_renew(self.lease_end)
        runtime().expose()

    def stop(self, reason: str) -> None:
        """Ask for the end of the effect; the first reason counts."""
        if self.stop_reason is not None:
            return
        self.stop_reason = reason
        log.info("job_stopping", job_id=str(self.id), reason=reason)
        if self._on_stop is not None:
            self._on_stop(reason)
        with self._arming:
            if self._armed:
                _interrupt(self._thread)

    def look_at_clock(self) -> None:
        """In the heartbeat: what must end by its time, whether or not the database answers."""
        margin = min(MARGIN_SECONDS, self.lease_seconds / 5)
        if now() >= self.timeout_end:
            self.stop("timeout")
        elif 0 < board.ends_at <= now():
            self.stop("interrupted")
        elif self.is_exposed and now() >= self.lease_end - margin:
            self.stop("lost")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """While inside, :meth:`stop` raises JobInterrupted in this thread."""
        self._armed = True
        try:
            if self.stop_reason is not None:
                raise JobInterrupted
            yield
        finally:
            with self._arming:
                self._armed = False
                if self._thread != threading.main_thread().ident:
                    _raise_in(self._thread, None)  # one that was asked for and has not come yet must not come later

    def ended(self) -> None:
        """The body has ended, and nothing of it goes on: waiting for the database from now on endangers nobody."""
        self.is_exposed = False
        runtime().expose()

    def take_interrupt(self) -> bool:
        """In the signal's handler: whether to raise, once."""
        wanted = self._armed and self.stop_reason is not None
        if wanted:
            self._armed = False
        return wanted


class Runtime:
    """What one process needs to hold jobs: connections to the ledger, and the thread that beats."""

    def __init__(self) -> None:
        self._connections = threading.local()
        self._held: dict[UUID, HeldJob] = {}
        self._changed = threading.Condition()
        self._exposing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_away = False

    @property
    def ledger(self) -> Ledger:
        """This thread's connection to the ledger."""
        if not hasattr(self._connections, "ledger"):
            self._connections.ledger = open_ledger("ops worker")
        ledger: Ledger = self._connections.ledger
        return ledger

    def gave_up(self) -> bool:
        """True when this worker ends and has no more time to wait for the database."""
        return 0 < board.ends_at < now() - PATIENCE_SECONDS

    def hold(self, job: HeldJob) -> None:
        with self._changed:
            self._held[job.token] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="ops-heartbeat", daemon=True)
                self._thread.start()
            self._changed.notify()

    def release(self, job: HeldJob) -> None:
        with self._changed:
            self._held.pop(job.token, None)

    def expose(self) -> None:
        """Note when this process must be dead: at the end of the first lease under which it does something itself."""
        with self._exposing:
            ends = [job.lease_end for job in list(self._held.values()) if job.is_exposed]
            board.set_deadline(min(ends, default=0.0))

    def _beat(self) -> None:
        pulse = open_ledger("ops heartbeat")
        due: dict[UUID, float] = {}
        while True:
            with self._changed:
                if not self._held:
                    self._changed.wait()
                held = list(self._held.values())
            due = {job.token: due.get(job.token, now() + _pause(job)) for job in held}
            try:
                self._beat_once(pulse, held, due)
            except Exception:
                # Without this thread every lease of this process runs out.
                log.exception("heartbeat_stumbled")
            ends = [*due.values(), *(job.timeout_end for job in held if job.stop_reason is None)]
            with self._changed:
                self._changed.wait(max(0.01, min(min(ends, default=now()) - now(), LOOK_SECONDS)))

    def _beat_once(self, pulse: Ledger, held: list[HeldJob], due: dict[UUID, float]) -> None:
        is_away = False
        for job in held:
            if now() >= due[job.token] and not is_away:
                is_away = not self._renew(pulse, job)
                due[job.token] = now() + (min(_pause(job), LOOK_SECONDS) if is_away else _pause(job))
            job.look_at_clock()

    def _renew(self, pulse: Ledger, job: HeldJob) -> bool:
        """One heartbeat; False when the database did not answer."""
        asked_at = now()
        try:
            answer = pulse.heartbeat(job.id, job.attempt, job.token)
        except psycopg.Error as error:
            if not self._is_away:
                log.warning("database_away", during="heartbeat", job_id=str(job.id), error=type(error).__name__)
            self._is_away = True
            return False
        self._is_away = False
        if job.token not in self._held:
            return True
        if answer == "lost":
            job.lease_end = min(job.lease_end, now() + LOST_SECONDS)
            self.expose()
            job.stop("lost")
        else:
            job.renewed(asked_at + job.lease_seconds)
            if answer == "cancelled":
                job.stop("cancelled")
        return True


_runtime: Runtime | None = None
_making = threading.Lock()


def runtime() -> Runtime:
    """This process's runtime; a forked child makes its own."""
    global _runtime
    if _runtime is None:
        with _making:
            _runtime = _runtime or Runtime()
    return _runtime


def _forget() -> None:
    """In a forked child: the parent's connections and threads are not ours, and its lock may be held for ever."""
    global _runtime, _making
    _runtime, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def listen_for_interrupts(current: Callable[[], HeldJob | None]) -> None:
    """In the main thread of a pool child: let :meth:`HeldJob.stop` reach into a task's body."""

    def handler(_number: int, _frame: object) -> None:
        job = current()
        if job is not None and job.take_interrupt():
            raise JobInterrupted

    signal.signal(INTERRUPT, handler)


def holders_here() -> Sequence[str]:
    """The processes that must be gone before this one's claim is void."""
    return [process_key(os.getpid())]


def _interrupt(thread: int) -> None:
    if thread == threading.main_thread().ident:
        signal.pthread_kill(thread, INTERRUPT)
    else:
        _raise_in(thread, JobInterrupted)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise in another thread at its next step in Python; None takes back what has not been raised yet."""
    reference = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), reference)


def _pause(job: HeldJob) -> float:
    return min(job.lease_seconds / 3, HEARTBEAT_SECONDS)
