"""Logs: one line per event. As text they look like Celery's own; with OPS_LOG_FORMAT=json each line is one JSON object,
Celery's lines and what others print included, with the id of the job or task that it is about."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog
from celery import Celery, signals
from celery.utils.log import get_multiprocessing_logger

from db.errors import OpsError
from db.settings import get_settings

Event = MutableMapping[str, Any]


def is_json() -> bool:
    """False also where the settings cannot be read: what says so is a line of text."""
    try:
        return get_settings().log_format == "json"
    except OpsError:
        return False


def install() -> None:
    """Let this process write as the settings say, once it is a worker or a beat."""
    signals.after_setup_logger.connect(_celery_has_loggers, weak=False)
    signals.after_setup_task_logger.connect(_celery_has_loggers, weak=False)
    signals.celeryd_init.connect(_worker_begins, weak=False)


def quiet_beat(app: Celery) -> Any:
    """Celery's beat for this app without a banner, which is printed before there is a log."""
    from celery.apps.beat import Beat

    class QuietBeat(Beat):
        def run(self) -> None:
            self.quiet = True
            super().run()

    return app.subclass_with_self(QuietBeat, name="Beat")


def configure() -> None:
    """The log of a process that is not Celery's, on stderr."""
    _configure_structlog()
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter() if is_json() else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.captureWarnings(True)


def as_celery() -> None:
    """One log for all: at Celery's level, in its file, with locks that survive a fork (those of structlog's own
    printer do not)."""
    if not structlog.is_configured():
        _configure_structlog()


def say(event: str, *, level: str = "info", logger: str = "worker", **fields: Any) -> None:
    """A line of JSON on stderr where there is no log yet, or where taking a lock is not allowed."""
    told = {"event": event, "level": level, "logger": logger, "pid": os.getpid(), **fields}
    told["timestamp"] = datetime.now(UTC).isoformat()
    os.write(2, f"{json.dumps(told)}\n".encode())


def _configure_structlog() -> None:
    last: list[Any] = [structlog.processors.LogfmtRenderer(key_order=["event"])]
    if is_json():
        last = [structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            *last,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _formatter() -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        # For what Celery and others log by themselves.
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, _add_task, structlog.processors.format_exc_info],
        processors=[
            _add_origin,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )


def _add_origin(_logger: Any, _method: str, event: Event) -> Event:
    record: logging.LogRecord = event["_record"]
    return {
        "event": event.pop("event"), "level": record.levelname.lower(), "logger": record.name, "pid": record.process,
        **event,
    }  # fmt: skip


def _add_task(_logger: Any, _method: str, event: Event) -> Event:
    """Celery names the task in the text of its lines; programs want it as fields."""
    data = getattr(event["_record"], "data", None)
    if isinstance(data, dict):
        event.update(
            {field: str(data[name]) for name, field in (("id", "task_id"), ("name", "task")) if data.get(name)}
        )
    return event


def _celery_has_loggers(logger: logging.Logger, **_: Any) -> None:
    as_celery()
    if not is_json():
        return
    formatter = _formatter()
    for each in (logger, get_multiprocessing_logger()):
        for handler in each.handlers:
            handler.setFormatter(formatter)


def _worker_begins(instance: Any, **_: Any) -> None:
    if not is_json():
        return
    from celery.apps import worker

    instance.quiet = True
    # Until Celery has a log, which then takes warnings as well.
    warnings.showwarning = lambda message, category, *_, **__: say(
        str(message).strip(), level="warning", logger="py.warnings", category=category.__name__
    )
    # Written in a signal's handler, past every log.
    worker.safe_say = lambda message, *_: say(str(message).strip())


def fail(error: OpsError) -> None:
    """The one line with which a process does not start."""
    if is_json():
        say("not_started", level="error", error=str(error), hint=error.hint)
    else:
        sys.stderr.write(f"error: {error}\n")
