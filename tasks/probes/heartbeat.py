"""Has something reported that must? What it reported comes with the plan."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from db.heartbeats import deadline
from db.probes import HeartbeatCheck, ProbePlan, Seen
from db.states import CheckStatus
from tasks.probes.net import Net


async def look(plan: ProbePlan, net: Net) -> Seen:  # noqa: ARG001 - nothing is connected to
    config: HeartbeatCheck = plan.config
    now, since, beat_at, started_at = (plan.known[name] for name in ("now", "since", "beat_at", "started_at"))
    facts = _facts(beat_at, started_at)
    due_at = deadline(config, beat_at or since)
    if beat_at is not None and since > beat_at:
        # We were away: it may have tried to report.
        due_at = max(due_at, since + timedelta(seconds=config.grace_seconds))
    if now >= due_at:
        # Whoever is late is looked at when it reports; now and then, should that be overlooked.
        again = deadline(config, now)
        said = "it has not reported in time" if beat_at else "it has never reported"
        return Seen(CheckStatus.DOWN, None, f"{said}; due by {due_at:%Y-%m-%d %H:%M:%S} UTC", facts, again)
    if beat_at is None:
        return Seen(CheckStatus.UNKNOWN, None, "it has not reported yet", facts, due_at)
    if plan.known["failed"]:
        return Seen(CheckStatus.DOWN, None, "it reported that it failed", facts, due_at)
    return Seen(CheckStatus.UP, facts.get("seconds"), None, facts, due_at)


def _facts(beat_at: datetime | None, started_at: datetime | None) -> dict[str, Any]:
    """When it last reported, and how long it had taken, where it had said when it began."""
    if beat_at is None:
        return {}
    facts: dict[str, Any] = {"reported_at": beat_at.isoformat()}
    if started_at is not None and started_at <= beat_at:
        facts["seconds"] = round((beat_at - started_at).total_seconds(), 3)
    return facts
