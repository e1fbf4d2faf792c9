"""Raises and resolves alerts. Alerts come from here, nowhere else."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from db.services import alerts
from tasks.ticks import tick


@shared_task(name="tasks.alerts.evaluate")
def evaluate() -> dict[str, Any] | None:
    """A failed deployment raises its alert; a later success there resolves it."""
    return tick("alerts", 15.0, alerts.evaluate)
