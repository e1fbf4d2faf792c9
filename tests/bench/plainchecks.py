"""Checks by plain Celery, as most people write them: one task for each, with requests."""

from __future__ import annotations

import os

import requests
from celery import Celery

app = Celery("plainchecks", broker=os.environ["PLAIN_BROKER_URL"])
app.conf.update(
    task_ignore_result=True, worker_prefetch_multiplier=4, task_serializer="json", accept_content=["json"],
    task_default_queue="plainchecks", broker_connection_retry_on_startup=True,
)  # fmt: skip


@app.task(name="plain.check")
def check(url: str) -> bool:
    """Whether it answers well. Nothing is written down."""
    return requests.get(url, timeout=5, verify=False).ok
