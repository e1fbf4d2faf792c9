"""Keeps what grows within its bounds."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from db.services import maintenance
from tasks.ticks import tick


@shared_task(name="tasks.maintenance.tidy")
def tidy() -> dict[str, Any] | None:
    """Make partitions ahead; remove jobs, logs and partitions whose retention has passed."""
    return tick("maintenance", 300.0, maintenance.tidy)
