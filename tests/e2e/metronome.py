"""The platform's own app with one tick more, which is due every second instead of every quarter of a minute."""

from __future__ import annotations

from typing import Any

from tasks.ticks import tick
from worker.app import app

app.conf.update(beat_schedule={"fast": {"task": "tests.fast", "schedule": 0.2, "options": {"expires": 5}}})


@app.task(name="tests.fast")
def fast() -> dict[str, Any] | None:
    """Says each time that it changed something, so that each run leaves an entry."""
    return tick("fast", 1.0, lambda session: {"ran": True})
