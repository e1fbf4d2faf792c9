"""The platform's Celery application: `celery -A worker.app worker|beat|flower`."""

from __future__ import annotations

import sys

from celery import Celery

from db.errors import OpsError
from worker import config, flower, logs, publish
from worker.schedule import BEAT_SCHEDULE

#: Task modules, named as strings: a process that only publishes does not import what the tasks need.
TASK_MODULES = (
    "tasks.alerts",
    "tasks.audit",
    "tasks.checks",
    "tasks.deployments",
    "tasks.maintenance",
    "tasks.metrics",
    "tasks.notifications",
    "tasks.schedules",
)


def make_app() -> Celery:
    """A configured app. Raises SettingsError when no broker is named."""
    made = Celery("ops", task_cls="worker.base:OpsTask", include=TASK_MODULES)
    made.is_platform = True  # nothing but the platform's own tasks: what else a message asks for is dropped
    made.conf.update(config.settings(), beat_schedule=BEAT_SCHEDULE)
    if logs.is_json():
        made.Beat = logs.quiet_beat(made)
    publish.install(made)
    return made


try:
    app = make_app()
    flower.prepare(sys.argv[1:])
except OpsError as error:
    # Celery's command line would print a traceback; whoever forgot a setting needs one line.
    logs.fail(error)
    raise SystemExit(error.exit_code) from None
