"""The mended consumer: a message is a doorbell, and whoever can write to the broker must not stop a worker with it.

Celery 5.7 ends a worker's main process when the broker goes away in the middle of a task, and when a string that is
not JSON lies on a queue. Both are mended here, and everything a message says beside a task's name and a job's id is
thrown away for durable tasks: arguments, callbacks, time limits, expiry, ETA.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import structlog
from celery.worker.consumer import Consumer
from celery.worker.strategy import default

from db.settings import get_settings
from worker.board import Dropped, board
from worker.publish import durable_in

log = structlog.get_logger()

_NO_EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: How long a broker that answers with an error is left alone: connecting to it works, so nothing else would wait.
REFUSED_SECONDS = 2.0
_CONTROL = "celery.worker.consumer.control:Control"


class Malformed(Exception):
    """A message that no part of the platform has sent."""


class OpsConsumer(Consumer):
    """Celery's consumer without the ways in which a broker could end it.

    It asks no neighbours at its start and hears no gossip: both carry other workers' word for which tasks are revoked.
    """

    class Blueprint(Consumer.Blueprint):
        default_steps = tuple(
            "worker.control:Control" if step == _CONTROL else step for step in Consumer.Blueprint.default_steps
        )

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        options = dict(worker_options or {})
        if get_settings().remote_control == "read":
            options |= {"without_mingle": True, "without_gossip": True}
        super().__init__(*args, worker_options=options, **kwargs)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        # Celery closes the connection once more after collecting it, and the second close trips over what the first
        # one has taken away. It has nothing left to do.
        if self.connection is not None:
            self.connection.close = _nothing
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            time.sleep(REFUSED_SECONDS)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)
        recoverable = (*self.connection_errors, *self.channel_errors)

        def on_task_received(message: Any) -> None:
            try:
                if _enqueues(self.app, message):
                    # Without a row that somebody wrote, and with arguments of the broker's choice.
                    log.error("message_dropped", reason="it names a durable task to be started; enqueue that in a body")
                    _throw_away(message, Dropped.NOT_A_TASK, None)
                    return
                handle(message)
            except Exception as error:
                # kombu calls a KeyError a lost connection; here it is a message without something.
                if isinstance(error, recoverable) and not isinstance(error, KeyError):
                    raise
                _throw_away(message, Dropped.MALFORMED, error)

        return on_task_received

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002
        _throw_away(message, Dropped.MALFORMED, None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        _throw_away(message, Dropped.NOT_A_TASK, None)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        _throw_away(message, Dropped.MALFORMED, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        _throw_away(message, Dropped.MALFORMED, exc)


def _enqueues(app: Any, message: Any) -> bool:
    """Whether a message would have a durable task started by what it carries along: a callback, the rest of a chain, or
    the arguments of one of Celery's own tasks that start others."""
    name = message.headers.get("task")
    if getattr(app, "is_platform", False) or getattr(app.tasks.get(name), "durable", False):
        return False  # of those nothing is heeded but a name and an id
    said = message.payload
    if isinstance(said, dict):  # the first protocol
        name = said.get("task")
        parts: Any = {key: value for key, value in said.items() if key not in ("task", "args", "kwargs")}
    else:
        parts = said[2:]
    return durable_in(app, said if str(name).startswith("celery.") else parts) is not None


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """How messages for an OpsTask are received: for a durable one as doorbells; for another of the platform's own
    with arguments and nothing else. Those of an application's other tasks are its own affair."""
    handle: Callable[..., Any] = default(task, app, consumer, **kwargs)
    is_ours = bool(getattr(app, "is_platform", False))
    if not (task.durable or is_ours):
        return handle
    if is_ours and task.name.startswith("celery."):
        # `celery.starmap` and its like run any task with any arguments.
        return lambda message, *_, **__: _throw_away(message, Dropped.NOT_A_TASK, None)
    revoked = consumer.controller.state.revoked

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **rest: Any) -> Any:  # noqa: ARG001
        arguments: tuple[list[Any], dict[str, Any]] = ([], {})
        expires = None
        if task.durable:
            task_id = str(UUID(message.headers["id"]))
            # What was revoked lives in a worker's memory, and is anybody's word; the ledger knows what was cancelled.
            revoked.discard(task_id)
        else:
            # A fresh id, so that a forged one that "expires" revokes nobody else's.
            task_id = str(uuid4())
            arguments, expires = _arguments(task, message), _expiry(message)
        _rewrite(message, str(task.name), task_id, arguments, expires)
        return handle(message, None, ack, reject, callbacks, **rest)

    return on_message


def _arguments(task: Any, message: Any) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs, *_ = message.payload
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise Malformed
    task.__header__(*args, **kwargs)
    if task.heeds is not None and not task.heeds(*args, **kwargs):
        raise Malformed
    return args, kwargs


def _expiry(message: Any) -> str | None:
    expires = message.headers.get("expires")
    return None if expires is None else datetime.fromisoformat(expires).isoformat()


def _rewrite(message: Any, task: str, task_id: str, arguments: tuple[Any, Any], expires: str | None) -> None:
    """Make the message say this and nothing more."""
    message.headers = {
        "lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
        "argsrepr": "()", "kwargsrepr": "{}", "retries": 0, "eta": None, "expires": expires,
        "timelimit": [None, None], "shadow": None, "origin": None, "ignore_result": True,
    }  # fmt: skip
    message.body = json.dumps([*arguments, _NO_EMBED]).encode()
    message.content_type, message.content_encoding = "application/json", "utf-8"
    message._decoded_cache = None
    message.properties = {"correlation_id": task_id}
    message.delivery_info = {}


def _throw_away(message: Any, reason: Dropped, error: Exception | None) -> None:
    board.count(reason)
    log.debug("message_dropped", reason=reason.name.lower(), error=type(error).__name__ if error else None)
    if not message.acknowledged:
        message.ack()


def _nothing() -> None:
    """Stands for a close that has been done."""
