"""What checks have seen over time: results, hours and days that they add up to, and the times spent in each state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, text
from sqlalchemy.orm import Session

from db.histograms import BUCKETS, PER_DOUBLING, SMALLEST_SECONDS
from db.models import CheckInterval, CheckResult, CheckRollup, MonitoringCheck
from db.repositories.base import bounded
from db.states import CheckState

_SCHEMA = MonitoringCheck.__table__.schema or "public"

# As `db.histograms.bucket` has it; a test holds them together.
_BUCKET = f"""least(greatest(ceil({PER_DOUBLING} * ln(greatest(r.latency_seconds::float8, 1e-9) / {SMALLEST_SECONDS})
    / ln(2::float8) - 1e-6), 0), {BUCKETS - 1})"""
_COUNTS = ", ".join(f"count(*) FILTER (WHERE bucket = {index})" for index in range(BUCKETS))
_SUMS = ", ".join(f"sum(histogram[{index + 1}])" for index in range(BUCKETS))
_SET = """count = excluded.count, downs = excluded.downs, degraded = excluded.degraded,
  unknowns = excluded.unknowns, missed = excluded.missed, histogram = excluded.histogram"""

# An hour's results, whole: doing it again comes to the same.
_HOUR = text(
    f"""INSERT INTO {_SCHEMA}.check_rollups AS u
  (check_id, span, starts_at, count, downs, degraded, unknowns, missed, histogram)
SELECT check_id, 'hour', :start, count(*) FILTER (WHERE status IN ('up', 'degraded', 'down')),
  count(*) FILTER (WHERE status = 'down'), count(*) FILTER (WHERE status = 'degraded'),
  count(*) FILTER (WHERE status = 'unknown'),
  coalesce(sum((facts ->> 'missed')::int) FILTER (WHERE status = 'missed'), 0),
  ARRAY[{_COUNTS}]::int[]
FROM (SELECT r.check_id, r.status, r.facts,
    CASE WHEN r.latency_seconds IS NOT NULL AND r.status IN ('up', 'degraded') THEN {_BUCKET} END AS bucket
  FROM {_SCHEMA}.check_results r JOIN {_SCHEMA}.monitoring_checks c ON c.id = r.check_id
  WHERE r.at >= :start AND r.at < :end) x
GROUP BY check_id
ON CONFLICT (check_id, span, starts_at) DO UPDATE SET {_SET}"""  # noqa: S608 - numbers, and a checked schema
)
_DAY = text(
    f"""INSERT INTO {_SCHEMA}.check_rollups AS u
  (check_id, span, starts_at, count, downs, degraded, unknowns, missed, histogram)
SELECT check_id, 'day', :start, sum(count), sum(downs), sum(degraded), sum(unknowns), sum(missed), ARRAY[{_SUMS}]::int[]
FROM {_SCHEMA}.check_rollups WHERE span = 'hour' AND starts_at >= :start AND starts_at < :end
GROUP BY check_id
ON CONFLICT (check_id, span, starts_at) DO UPDATE SET {_SET}"""  # noqa: S608
)
# How long each check was in each state within a time, and how long that was known at all.
_SHARES = text(
    f"""SELECT check_id, state,
  sum(extract(epoch FROM least(coalesce(ended_at, :end), :end) - greatest(started_at, :start)))
FROM {_SCHEMA}.check_intervals
WHERE check_id = ANY(:ids) AND started_at < :end AND coalesce(ended_at, :end) > :start
GROUP BY 1, 2"""  # noqa: S608
)


@dataclass(frozen=True, slots=True)
class Uptime:
    """Of one check in one time, in seconds by state. Paused times and those of which nothing is known do not count."""

    seconds: Mapping[CheckState, float]

    @property
    def share(self) -> float | None:
        """Up or degraded, as a share of what counts; None where nothing does."""
        good = self.seconds.get(CheckState.UP, 0.0) + self.seconds.get(CheckState.DEGRADED, 0.0)
        counts = good + self.seconds.get(CheckState.DOWN, 0.0)
        return good / counts if counts else None


class CheckHistoryRepository:
    """Reads of the past, and what keeps it small."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def results(self, check_id: int, *, limit: int = 100, before: datetime | None = None) -> Sequence[CheckResult]:
        """The newest results of a check, newest first; ``before``: older than this."""
        query = select(CheckResult).where(CheckResult.check_id == check_id).order_by(CheckResult.at.desc())
        if before is not None:
            query = query.where(CheckResult.at < before)
        return self.session.scalars(query.limit(bounded(limit))).all()

    def rollups(
        self, check_ids: Sequence[int], span: str, *, since: datetime, until: datetime | None = None
    ) -> Sequence[CheckRollup]:
        """Hours or days (UTC) that are over, by check, oldest first."""
        query = select(CheckRollup).where(
            CheckRollup.check_id.in_(check_ids), CheckRollup.span == span, CheckRollup.starts_at >= since
        )
        if until is not None:
            query = query.where(CheckRollup.starts_at < until)
        return self.session.scalars(query.order_by(CheckRollup.check_id, CheckRollup.starts_at)).all()

    def uptime(self, check_ids: Sequence[int], *, since: datetime, until: datetime) -> dict[int, Uptime]:
        """Of each check between two times, from the states' own intervals; one that did not exist is not there."""
        rows = self.session.execute(_SHARES, {"ids": list(check_ids), "start": since, "end": until})
        found: dict[int, dict[CheckState, float]] = {}
        for check_id, state, seconds in rows:
            found.setdefault(check_id, {})[CheckState(state)] = float(seconds)
        return {check_id: Uptime(seconds) for check_id, seconds in found.items()}

    def intervals(
        self, check_ids: Sequence[int], *, since: datetime, states: Sequence[CheckState] | None = None
    ) -> Sequence[CheckInterval]:
        """The times in these states that had not ended by ``since``, newest first; the open one has no end."""
        query = select(CheckInterval).where(
            CheckInterval.check_id.in_(check_ids),
            or_(CheckInterval.ended_at.is_(None), CheckInterval.ended_at > since),
        )
        if states is not None:
            query = query.where(CheckInterval.state.in_(states))
        return self.session.scalars(query.order_by(CheckInterval.started_at.desc(), CheckInterval.id.desc())).all()

    def incidents(self, check_ids: Sequence[int], *, since: datetime) -> Sequence[CheckInterval]:
        """The times in which checks were down, newest first."""
        return self.intervals(check_ids, since=since, states=(CheckState.DOWN,))

    def next_hour(self) -> datetime | None:
        """The first hour whose results may not have been added up; None where there are no results at all."""
        newest = select(func.max(CheckRollup.starts_at)).where(CheckRollup.span == "hour").scalar_subquery()
        oldest = select(func.min(CheckResult.at)).scalar_subquery()
        query = select(func.coalesce(newest + timedelta(hours=1), func.date_trunc("hour", oldest, "UTC")))
        found: datetime | None = self.session.scalar(query)
        return found

    def next_day(self) -> datetime | None:
        """The first UTC day whose hours may not have been added up."""
        newest = select(func.max(CheckRollup.starts_at)).where(CheckRollup.span == "day").scalar_subquery()
        oldest = select(func.min(CheckRollup.starts_at)).where(CheckRollup.span == "hour").scalar_subquery()
        query = select(func.coalesce(newest + timedelta(days=1), func.date_trunc("day", oldest, "UTC")))
        found: datetime | None = self.session.scalar(query)
        return found

    def add_up(self, span: str, start: datetime) -> int:
        """Add up an hour or a UTC day that is over; doing it again comes to the same. How many checks it has."""
        length = timedelta(hours=1) if span == "hour" else timedelta(days=1)
        done = self.session.execute(_HOUR if span == "hour" else _DAY, {"start": start, "end": start + length})
        return int(getattr(done, "rowcount", 0))

    def make_partitions(self, ahead: int) -> int:
        """Of the days to come; how many were made."""
        return self._count(getattr(func, _SCHEMA).ops_checks_make_partitions(ahead))

    def drop_partitions(self, keep_days: int) -> int:
        """Of the days that are over for longer; how many were dropped."""
        return self._count(getattr(func, _SCHEMA).ops_checks_drop_partitions(keep_days))

    def remove_rollups(self, span: str, days: int, most: int) -> int:
        """Hours or days that began longer ago; how many were removed."""
        old = (
            select(CheckRollup.check_id, CheckRollup.span, CheckRollup.starts_at)
            .where(CheckRollup.span == span, CheckRollup.starts_at < func.now() - timedelta(days=days))
            .limit(most)
            .subquery()
        )
        query = delete(CheckRollup).where(
            CheckRollup.check_id == old.c.check_id,
            CheckRollup.span == old.c.span,
            CheckRollup.starts_at == old.c.starts_at,
        )
        done = self.session.execute(query, execution_options={"synchronize_session": False})
        return int(getattr(done, "rowcount", 0))

    def remove_intervals(self, days: int, most: int) -> int:
        """Times that ended longer ago; how many were removed."""
        old = select(CheckInterval.id).where(CheckInterval.ended_at < func.now() - timedelta(days=days)).limit(most)
        query = delete(CheckInterval).where(CheckInterval.id.in_(old))
        done = self.session.execute(query, execution_options={"synchronize_session": False})
        return int(getattr(done, "rowcount", 0))

    def _count(self, call: Any) -> int:
        return int(self.session.scalar(select(call)) or 0)
