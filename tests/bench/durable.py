"""The same work as durable tasks."""

from __future__ import annotations

import time

from celery import shared_task


@shared_task(name="bench.work", durable=True, idempotent=True, queue="control")
def work() -> None:
    """Nothing: what is measured is the platform."""


@shared_task(name="bench.stamp", durable=True, queue="control")
def stamp(path: str) -> None:
    """Write down when the body started."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"{time.time()}\n")
