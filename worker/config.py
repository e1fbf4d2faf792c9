"""Celery's settings, each with its reason. An application's own app gets those that durable tasks rest on."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Queue

from db.errors import SettingsError
from db.settings import get_settings
from worker import transport

QUEUES = ("deployments", "checks", "control")
DEFAULT_QUEUE = "control"

#: What durable tasks rest on, in any app.
REQUIRED: dict[str, Any] = {"worker_consumer": "worker.consumer:OpsConsumer"}

#: What serves them best; an app may think otherwise.
LEDGER: dict[str, Any] = {
    # Without this a doorbell waits behind a running job although another worker is idle.
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    # A worker that starts before its broker, or outlives it, waits for it, for ever.
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # One that answers with an error (a replica after a failover, no memory left, a full disk) is as good as away;
    # without this it ends the worker, and what runs there.
    "broker_channel_error_retry": True,
    # An app that keeps no results asks the ledger for those of its durable tasks.
    "result_backend": "worker.backend:LedgerBackend",
}

#: What the platform's own app has beside that.
PLATFORM = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    # A doorbell is acknowledged when it is heard: the ledger, not the broker, knows what is unfinished.
    "task_acks_late": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "task_ignore_result": True,
    "task_default_queue": DEFAULT_QUEUE,
    "task_create_missing_queues": True,
    "task_send_sent_event": False,
    "worker_send_task_events": True,
    "task_track_started": False,
    "worker_hijack_root_logger": True,
    "worker_max_tasks_per_child": 1000,
    "worker_proc_alive_timeout": 30,
    "enable_utc": True,
    "timezone": "UTC",
    "beat_scheduler": "worker.schedule:Metronome",
    "beat_max_loop_interval": 5,
    "task_routes": {
        "tasks.deployments.*": {"queue": "deployments"},
        "tasks.checks.*": {"queue": "checks"},
        "tasks.*": {"queue": "control"},
    },
}

#: Of the broker: answers are waited for, but not for ever, and nothing is kept there that could be lost or forged.
TRANSPORT = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "ack_emulation": False,
    "uncompressed": True,
}


def settings() -> dict[str, Any]:
    """The platform's own configuration. Raises SettingsError when no broker is named."""
    return (
        PLATFORM
        | LEDGER
        | REQUIRED
        | {
            "broker_url": get_settings().require_broker_url(),
            "broker_transport_options": dict(TRANSPORT),
            "task_queues": [Queue(name, routing_key=name) for name in QUEUES],
        }
    )


def complete(app: Celery) -> None:
    """Give an app what durable tasks rest on, where it has not chosen otherwise itself.

    Raises SettingsError, when the app is configured, for a choice that durable tasks cannot live with.
    """
    transport.install()

    def apply(*_: Any, **__: Any) -> None:
        chosen = getattr(app.conf, "changes", {})
        for name, value in REQUIRED.items():
            if chosen.get(name, value) != value:
                raise SettingsError(f"durable tasks need {name} = {value!r} on {app.main or 'the app'}")
        for name, value in (REQUIRED | LEDGER).items():
            if name not in chosen:
                app.conf[name] = value

    app.on_after_configure.connect(apply, weak=False)
    if app.configured:
        apply()
