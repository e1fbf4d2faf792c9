"""Doorbells: after a job's row is committed, its id goes to the broker.

Everything here may fail without harm. The row is safe, and the relay rings what was not heard. So a publish is bounded
(about two seconds at worst, no retries), its errors are swallowed and logged, and after one the broker is left alone
for a moment.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import structlog
from celery import Celery
from kombu import Connection, Producer
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from db.errors import InvalidInput
from db.ledger import Bell
from db.loop import off_loop
from db.repositories.jobs import ENQUEUED

log = structlog.get_logger()

#: How long connecting to the broker, and one answer of it, may take.
BROKER_SECONDS = 1.5
#: After a failure the broker is left alone for this long: a busy caller must not wait for it every time.
QUIET_SECONDS = 2.0
_COMMITTED = "ops_committed"
#: Options of a message that name tasks which whoever handles it is to start.
_FOLLOWERS = ("link", "link_error", "chain", "chord")


class Line:
    """This process's line to the broker: one connection, one user at a time, made anew after a fork or an error."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._is_away = False
        self._quiet_until = 0.0
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # After a fork the lock may be held by a thread that does not exist here, and the connection is the parent's.
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._producer: Producer | None = None

    def ring(self, bells: Sequence[Bell]) -> bool:
        """Publish; True when the broker took them all."""
        return self._do(lambda: self._publish(bells), "ring", count=len(bells)) is not None

    def ask(self, task: str, *, expires: float) -> bool:
        """Ask for a tick, which is not durable, as beat does; True when the broker took it."""

        def send() -> bool:
            self.app.send_task(
                task, producer=self._producer, expires=expires, ignore_result=True, retry=False, add_to_parent=False
            )
            return True

        return self._do(send, "ask") is not None

    def depths(self, queues: Iterable[str]) -> dict[str, int] | None:
        """How many messages wait in each queue; None when the broker does not answer."""
        answer = self._do(lambda: {queue: self._depth(queue) for queue in queues}, "depths")
        return answer if isinstance(answer, dict) else None

    def _do(self, work: Any, what: str, **fields: Any) -> Any:
        if time.monotonic() < self._quiet_until or not self._lock.acquire(timeout=BROKER_SECONDS):
            return None
        try:
            self._connect()
            answer = work()
        except Exception as error:  # noqa: BLE001 - whatever a transport raises, the row is safe
            self._hang_up()
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            if not self._is_away:
                log.warning("broker_away", during=what, error=f"{type(error).__name__}: {error}"[:200], **fields)
            self._is_away = True
            return None
        else:
            if self._is_away:
                log.info("broker_back", during=what)
            self._is_away = False
            return answer
        finally:
            self._lock.release()

    def _connect(self) -> None:
        if self._connection is None:
            self._connection = self.app.connection_for_write(
                connect_timeout=BROKER_SECONDS,
                transport_options={
                    "socket_timeout": BROKER_SECONDS,
                    "socket_connect_timeout": BROKER_SECONDS,
                    "max_retries": 0,
                },
            )
            self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_SECONDS)
            self._producer = self.app.amqp.Producer(self._connection)

    def _hang_up(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(socket_timeout=0.1)

    def _publish(self, bells: Sequence[Bell]) -> bool:
        producer = self._producer
        assert producer is not None
        # One round trip for many bells, where the transport can.
        with producer.batch() if len(bells) > 1 and producer.supports_batch_publish else nullcontext():
            for bell in bells:
                self.app.send_task(
                    bell.task,
                    task_id=str(bell.id),
                    queue=bell.queue,
                    priority=bell.priority,
                    producer=producer,
                    ignore_result=True,
                    retry=False,
                    add_to_parent=False,
                    # An id is all that the message carries: nothing of the task that happens to run here.
                    root_id=str(bell.id),
                    parent_id=str(bell.id),
                    argsrepr="()",
                    kwargsrepr="{}",
                )
        return True

    def _depth(self, queue: str) -> int:
        assert self._connection is not None
        channel = self._connection.default_channel
        if hasattr(channel, "_size"):
            return int(channel._size(queue))
        return int(channel.queue_declare(queue, passive=True).message_count)


_line: Line | None = None


def install(app: Celery) -> None:
    """Make an application's own Celery app ring: jobs enqueued in any session are published after its commit.

    Its tasks become durable with ``@app.task(base=OpsTask, durable=True)``; its workers get the relay, the rescue
    and the mended consumer as well. Call it once, where the app is made.
    """
    global _line
    from worker import config, lifecycle

    config.complete(app)
    lifecycle.connect(app)
    _refuse_followers(app)
    _line = Line(app)
    if not event.contains(Session, "after_transaction_end", _after_transaction):
        event.listen(Session, "after_commit", _after_commit)
        event.listen(Session, "after_transaction_end", _after_transaction)


def durable_in(app: Celery, said: Any) -> str | None:
    """The name of a durable task that stands somewhere in a part of a message, as a signature or bare; else None."""
    if isinstance(said, str):
        return said if getattr(app.tasks.get(said), "durable", False) else None
    parts = said.values() if isinstance(said, dict) else said if isinstance(said, (list, tuple)) else ()
    return next(filter(None, (durable_in(app, part) for part in parts)), None)


def _refuse_followers(app: Celery) -> None:
    """A worker drops messages that name a durable task to start afterwards, since anybody may have written them; so
    say it to whoever is about to send one."""
    send = app.send_task

    def send_task(name: str, *args: Any, **options: Any) -> Any:
        for follower in _FOLLOWERS:
            if durable := durable_in(app, options.get(follower)):
                raise InvalidInput(
                    f"{durable} is durable and takes part in no {follower}: the task before enqueues the next job from "
                    "its body instead"
                )
        return send(name, *args, **options)

    app.send_task = send_task


def line() -> Line | None:
    """The line of the app that was installed, or None in a process that has none."""
    return _line


def ring(bells: Sequence[Bell]) -> bool:
    """Publish doorbells, best effort. True when the broker took them all, or there were none."""
    return not bells or (_line is not None and _line.ring(bells))


def _after_commit(session: Session) -> None:
    if ENQUEUED in session.info and not session.in_nested_transaction():
        session.info[_COMMITTED] = True


def _after_transaction(session: Session, transaction: SessionTransaction) -> None:
    """When the outermost transaction has ended and given its connection back: ring what it enqueued."""
    if transaction.parent is None and ENQUEUED in session.info:
        bells = session.info.pop(ENQUEUED)
        if session.info.pop(_COMMITTED, False):
            session.info["ops_rung"] = off_loop(ring, bells)
