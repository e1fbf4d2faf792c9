"""Checks as alerts see them: what is not up, and when it was down."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import and_, func, literal_column, or_, select
from sqlalchemy.orm import Session

from db.models import CheckInterval, CheckStanding, MonitoringCheck
from db.states import CheckState

#: A spell is traced back no further than this.
FURTHEST = timedelta(days=1)
#: As the index has it: a parameter would not match it.
_WORSE: list[Any] = [literal_column(f"'{state}'") for state in (CheckState.DOWN, CheckState.DEGRADED)]


class OutageRepository:
    """Read-only."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def standings(self, known: Collection[int]) -> Sequence[tuple[MonitoringCheck, CheckStanding]]:
        """The checks that are down, degraded or blind, and these, each with its standing."""
        query = (
            select(MonitoringCheck, CheckStanding)
            .join(CheckStanding, CheckStanding.check_id == MonitoringCheck.id)
            .where(
                or_(
                    CheckStanding.state.in_(_WORSE),
                    CheckStanding.blind_at.is_not(None),
                    CheckStanding.check_id.in_(known),
                )
            )
            .order_by(MonitoringCheck.id)
        )
        rows = self.session.execute(query, execution_options={"populate_existing": True})
        return [(row[0], row[1]) for row in rows]

    def were_down(self, since: datetime) -> Sequence[tuple[MonitoringCheck, CheckStanding]]:
        """The checks that have stopped being down since then, each with its standing."""
        ended = select(CheckInterval.check_id).where(
            CheckInterval.ended_at > since, CheckInterval.state == CheckState.DOWN
        )
        query = (
            select(MonitoringCheck, CheckStanding)
            .join(CheckStanding, CheckStanding.check_id == MonitoringCheck.id)
            .where(MonitoringCheck.id.in_(ended))
            .order_by(MonitoringCheck.id)
        )
        rows = self.session.execute(query, execution_options={"populate_existing": True})
        return [(row[0], row[1]) for row in rows]

    def intervals(self, first: dict[int, int | None]) -> dict[int, list[CheckInterval]]:
        """The intervals of these checks in order, from the one of this id on, or (None) of the last day."""
        if not first:
            return {}
        fresh = or_(CheckInterval.ended_at.is_(None), CheckInterval.ended_at > func.now() - FURTHEST)
        named = [
            and_(CheckInterval.check_id == key, CheckInterval.id >= start) for key, start in first.items() if start
        ]
        others = [key for key, start in first.items() if start is None]
        where = or_(*named, and_(CheckInterval.check_id.in_(others), fresh))
        query = select(CheckInterval).where(where).order_by(CheckInterval.check_id, CheckInterval.id)
        rows = self.session.scalars(query, execution_options={"populate_existing": True})
        return {key: list(each) for key, each in groupby(rows, lambda row: row.check_id)}
