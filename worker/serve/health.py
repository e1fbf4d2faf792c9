"""`/healthz`: does this process live, and its database? `/readyz`: does the platform work?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from db.connection import get_db_session
from db.preflight import check_schema
from db.repositories.stats import StatsRepository


@dataclass(frozen=True, slots=True)
class Health:
    """``missing``: what keeps the platform from working, by words that tell nothing of it."""

    beat: bool
    missing: tuple[str, ...]

    def liveness(self) -> dict[str, Any]:
        return {"status": "ok", "database": "answers", "beat": "alive" if self.beat else "silent"}

    def readiness(self) -> dict[str, Any]:
        return {"status": "not ready", "because": list(self.missing)} if self.missing else {"status": "ready"}


def look() -> Health:
    """Raises DatabaseUnavailable and the like."""
    with get_db_session(read_only=True) as session:
        stats = StatsRepository(session)
        kinds = {row.kind for row in stats.processes() if row.alive}
        paused = stats.ledger_state().paused_at is not None
        is_current = _is_current(session)
    missing = (
        ("schema", is_current), ("beat", "beat" in kinds), ("worker", "worker" in kinds), ("paused", not paused),
    )  # fmt: skip
    return Health("beat" in kinds, tuple(name for name, there in missing if not there))


def _is_current(session: Any) -> bool:
    from db.errors import OpsError

    try:
        check_schema(session.connection())
    except OpsError:
        return False
    return True
