"""The past of checks: added up hour by hour, kept for as long as the settings say, and told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.histograms import percentile
from db.models import MonitoringCheck
from db.repositories import CheckHistoryRepository
from db.settings import get_settings

#: Partitions of results are made for so many days ahead.
DAYS_AHEAD = 7
#: A result may come so long after its hour is over.
SETTLED = timedelta(minutes=5)
#: Hours with results that one run adds up; the next run goes on.
MOST_HOURS = 24
#: Rows removed per run and table.
BATCH = 5000
WINDOWS = {"24 hours": timedelta(days=1), "7 days": timedelta(days=7), "30 days": timedelta(days=30),
           "90 days": timedelta(days=90)}  # fmt: skip


def tidy(session: Session) -> dict[str, int]:
    """Add up what is over, make partitions ahead, and remove what has been kept for long enough; the counts."""
    settings, history = get_settings(), CheckHistoryRepository(session)
    return {
        "check_partitions_made": history.make_partitions(DAYS_AHEAD),
        "check_rollups": _add_up(session, history),
        "check_partitions_dropped": history.drop_partitions(settings.check_result_days),
        "check_hours_removed": history.remove_rollups("hour", settings.check_hour_days, BATCH),
        "check_days_removed": history.remove_rollups("day", settings.check_history_days, BATCH),
        "check_intervals_removed": history.remove_intervals(settings.check_history_days, BATCH),
    }


def summary(session: Session, check: MonitoringCheck, *, results: int = 60) -> dict[str, Any]:
    """A check's past: its newest results, uptime in several windows, latency percentiles of the last day, incidents.

    Uptime leaves out the times in which the check was paused or nothing could be known; ``unknown_seconds`` says how
    long these were.
    """
    history = CheckHistoryRepository(session)
    now = session.scalar(select(func.statement_timestamp())) or datetime.now(UTC)
    uptime = {}
    for window, length in WINDOWS.items():
        found = history.uptime([check.id], since=now - length, until=now).get(check.id)
        share = None if found is None else found.share
        uptime[window] = None if share is None else round(100 * share, 4)
    hours = history.rollups([check.id], "hour", since=now - timedelta(days=1))
    merged = [sum(counts) for counts in zip(*(hour.histogram for hour in hours), strict=True)]
    latency = {f"p{int(100 * share)}": percentile(merged, share) for share in (0.5, 0.9, 0.99)} if merged else {}
    newest = history.results(check.id, limit=results)
    return {
        "results": [
            {"at": each.at, "status": each.status, "latency_seconds": each.latency_seconds, "message": each.message}
            for each in reversed(newest)
        ],
        "uptime_percent": uptime,
        "latency_seconds": latency,
        "incidents": [
            {
                "started_at": each.started_at, "ended_at": each.ended_at,
                "seconds": round(((each.ended_at or now) - each.started_at).total_seconds(), 1),
            }
            for each in history.incidents([check.id], since=now - WINDOWS["90 days"])
        ],
    }  # fmt: skip


def _add_up(session: Session, history: CheckHistoryRepository) -> int:
    """Hours, then days, that are over and have not been added up; how many rows came of it."""
    settings = get_settings()
    now = session.scalar(select(func.statement_timestamp())) or datetime.now(UTC)
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = 0
    for span, length, kept in (
        ("hour", timedelta(hours=1), settings.check_result_days),
        ("day", timedelta(days=1), settings.check_hour_days),
    ):
        start = history.next_hour() if span == "hour" else history.next_day()
        # What it would be added up from is not older than this.
        start = start and max(start, midnight - timedelta(days=kept + 1))
        full = 0
        # Those without any result cost next to nothing and are passed over without a limit: the next run would begin
        # with the same ones.
        while start is not None and start + length + SETTLED <= now and full < MOST_HOURS:
            added = history.add_up(span, start)
            rows, full, start = rows + added, full + bool(added), start + length
    return rows
