"""What a public page may tell of checks: names, labels, states and times; never what they look at, or what they say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal_column, select, text
from sqlalchemy.orm import Session

from db.models import CheckInterval, CheckRollup, CheckStanding, MonitoringCheck
from db.states import CheckState

_SCHEMA = MonitoringCheck.__table__.schema or "public"

# Seconds of each UTC day in each state but up: what is left of a day is up. So a check that never fails is no row.
_DAYS = text(
    f"""SELECT i.check_id, d.day, i.state,
  sum(extract(epoch FROM least(coalesce(i.ended_at, :until), d.day + interval '1 day', :until)
    - greatest(i.started_at, d.day, :since)))::float AS seconds
FROM {_SCHEMA}.check_intervals i JOIN {_SCHEMA}.monitoring_checks c ON c.id = i.check_id AND c.public,
  generate_series(date_trunc('day', greatest(i.started_at, :since), 'UTC'),
    least(coalesce(i.ended_at, :until), :until), interval '1 day') AS d(day)
WHERE i.state <> 'up' AND i.started_at < :until AND coalesce(i.ended_at, 'infinity') > :since
GROUP BY 1, 2, 3"""  # noqa: S608 - the schema's name is checked by settings
)


class StatusPageRepository:
    """Read-only, and of public checks alone."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def now(self) -> datetime:
        found: datetime = self.session.execute(select(func.statement_timestamp())).scalar_one()
        return found

    def checks(self, limit: int) -> Sequence[Any]:
        """Public checks by name, with where they stand; ``first_at``: since when anything is known of them."""
        first = (
            select(func.min(CheckInterval.started_at))
            .where(CheckInterval.check_id == MonitoringCheck.id)
            .correlate(MonitoringCheck)
            .scalar_subquery()
        )
        query = (
            select(
                MonitoringCheck.id, MonitoringCheck.name,
                MonitoringCheck.kind, MonitoringCheck.severity, MonitoringCheck.labels,
                MonitoringCheck.failure_threshold,
                CheckStanding.state, CheckStanding.since_at, CheckStanding.blinds, CheckStanding.next_run_at,
                CheckStanding.last_run_at, first.label("first_at"),
            )
            .join(CheckStanding, CheckStanding.check_id == MonitoringCheck.id)
            .where(MonitoringCheck.public)
            .order_by(func.lower(MonitoringCheck.name), MonitoringCheck.id)
            .limit(limit)
        )  # fmt: skip
        return self.session.execute(query).all()

    def days(self, since: datetime, until: datetime) -> Sequence[Any]:
        """``check_id``, ``day`` (its beginning, UTC), ``state``, ``seconds``: of each day the time that was not up."""
        return self.session.execute(_DAYS, {"since": since, "until": until}).all()

    def troubles(self, check_ids: Sequence[int], since: datetime) -> Sequence[Any]:
        """``check_id``, ``state``, ``started_at``, ``ended_at`` of what was not up and had not ended by then."""
        query = select(
            CheckInterval.check_id, CheckInterval.state, CheckInterval.started_at, CheckInterval.ended_at
        ).where(
            CheckInterval.check_id.in_(check_ids),
            CheckInterval.state != CheckState.UP,
            func.coalesce(CheckInterval.ended_at, literal_column("'infinity'::timestamptz")) > since,
        )
        return self.session.execute(query).all()

    def incidents(self, since: datetime, limit: int) -> Sequence[Any]:
        """The times in which public checks were down, newest first."""
        query = (
            select(MonitoringCheck.name, CheckInterval.started_at, CheckInterval.ended_at)
            .join(MonitoringCheck, MonitoringCheck.id == CheckInterval.check_id)
            .where(MonitoringCheck.public, CheckInterval.state == CheckState.DOWN)
            .where(func.coalesce(CheckInterval.ended_at, literal_column("'infinity'::timestamptz")) > since)
            .order_by(CheckInterval.started_at.desc(), CheckInterval.id.desc())
            .limit(limit)
        )
        return self.session.execute(query).all()

    def hours(self, check_ids: Sequence[int], since: datetime) -> Sequence[Any]:
        """``check_id``, ``starts_at``, ``histogram`` of latencies: hours that are over, oldest first."""
        query = (
            select(CheckRollup.check_id, CheckRollup.starts_at, CheckRollup.histogram)
            .where(CheckRollup.check_id.in_(check_ids), CheckRollup.span == "hour", CheckRollup.starts_at >= since)
            .order_by(CheckRollup.check_id, CheckRollup.starts_at)
        )
        return self.session.execute(query).all()
