"""A worker's life: what happens at its start, after each fork, and at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from billiard.process import current_process
from celery import Celery, bootsteps, signals

from db import connection
from db.errors import OpsError
from db.preflight import check_start
from db.settings import get_settings
from tasks.supervisor import now
from worker import lease, logs, publish, reaper
from worker.board import board
from worker.relay import Relay

T = TypeVar("T")

_connected = False
_relay: Relay | None = None


def connect(app: Celery) -> None:
    """Listen to Celery's signals, once per process, and add our step to this app's workers."""
    global _connected
    app.steps["worker"].add(Guard)
    app.steps["consumer"].add(Pulse)
    if _connected:
        return
    _connected = True
    logs.install()
    signals.worker_init.connect(_worker_starts, weak=False)
    signals.worker_process_init.connect(_child_starts, weak=False)
    signals.task_postrun.connect(_task_ends, weak=False)
    signals.worker_ready.connect(_worker_is_ready, weak=False)
    signals.worker_shutting_down.connect(_worker_shuts_down, weak=False)
    signals.worker_shutdown.connect(_worker_ends, weak=False)


class Guard(bootsteps.StartStopStep):
    """Starts the relay and the reaper after the pool's first children, and before anything waits for the broker."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        global _relay
        line = publish.line()
        assert line is not None
        reaper.start()
        _relay = Relay(line, str(parent.hostname), queues=tuple(parent.app.amqp.queues.consume_from))
        _relay.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        _worker_shuts_down()  # a restart by HUP comes without the signal


class Pulse(bootsteps.StartStopStep):
    """Tells the relay that the main loop goes round, from each time on that it is connected: what is lost with a
    connection are its timers, too."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        if _relay is not None and _relay.gate is not None:
            _relay.gate.consumer = parent
            _relay.pulse()
            parent.timer.call_repeatedly(1.0, _relay.pulse)

    def stop(self, parent: Any) -> None:
        """Nothing to do: the timer ends with the connection."""


def or_leave(check: Callable[[], T]) -> T:
    """The answer; where there is none, the process ends with one line that says why."""
    try:
        return check()
    except OpsError as error:
        logs.fail(error)
        raise SystemExit(error.exit_code) from None


def _worker_starts(**_: Any) -> None:
    or_leave(check_start)
    from worker.base import current_job

    board.take_slot(0)
    if threading.current_thread() is threading.main_thread():
        lease.listen_for_interrupts(current_job)


def _child_starts(**_: Any) -> None:
    index = getattr(current_process(), "index", None)
    if index is None:
        return  # `-P solo`: this is the main process still
    from worker.base import current_job

    connection.after_fork()
    board.take_slot(index + 1)
    lease.listen_for_interrupts(current_job)


def _task_ends(**_: Any) -> None:
    board.note_encryption()


def _worker_is_ready(**_: Any) -> None:
    if _relay is not None:
        _relay.ready()


def _worker_shuts_down(**_: Any) -> None:
    """Grant what runs a while, then end it in order; Celery alone would wait for ever.

    Called in a signal's handler: nothing here may log, start a thread or take a lock.
    """
    board.end_at(now() + get_settings().shutdown_seconds)


def _worker_ends(**_: Any) -> None:
    if _relay is not None:
        _relay.stop()
