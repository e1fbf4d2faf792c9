"""A tick: a periodic job that any number of beats may ask for, and that runs once per interval."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.repositories.ticks import TickRepository

Work = Callable[[Session], dict[str, Any] | None]


def tick(name: str, seconds: float, work: Work) -> dict[str, Any] | None:
    """Run the work unless it has run within its interval. What it returns (what it changed; None: nothing) is recorded:
    one entry when it changed something, one per hour with the count of idle runs."""
    with get_db_session(actor=f"tick {name}", actor_type="beat") as session:
        if not TickRepository(session).due(name, timedelta(seconds=seconds)):
            return None
    with get_db_session(actor=f"tick {name}", actor_type="beat") as session:
        changed = work(session)
        TickRepository(session).done(name, changed)
    return changed
