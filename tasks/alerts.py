"""Raises and resolves alerts. Alerts come from here, nowhere else."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import shared_task

from db.services import evaluation, failures, outages, rules
from tasks.ticks import tick

#: What tells of things, and what tells of the platform itself, which takes longer to measure.
THINGS, PLATFORM = (failures.observe, outages.observe), (rules.observe,)


@shared_task(name="tasks.alerts.evaluate")
def evaluate() -> dict[str, Any] | None:
    """What is wrong is raised, what is over is resolved."""
    changed = tick("alerts", 15.0, partial(evaluation.evaluate, sources=THINGS)) or {}
    changed |= tick("rules", 30.0, partial(evaluation.evaluate, sources=PLATFORM)) or {}
    return changed or None
