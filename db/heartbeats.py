"""When something that must report has to have reported. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from db.probes import HeartbeatCheck


def deadline(config: HeartbeatCheck, last: datetime) -> datetime:
    """The latest moment for the report after the one at ``last``. A cron line is read in its own time zone, as cron
    does where clocks change."""
    grace = timedelta(seconds=config.grace_seconds)
    if config.period_seconds is not None:
        return last + timedelta(seconds=config.period_seconds) + grace
    assert config.cron is not None
    fires = next(CronSim(config.cron, last.astimezone(ZoneInfo(config.timezone))))
    return fires.astimezone(last.tzinfo) + grace
