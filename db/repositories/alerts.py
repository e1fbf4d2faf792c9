"""Alerts and their timelines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.connection import apply_context, context_of
from db.models import AlertEvent, MonitoringAlert
from db.repositories.base import Page, Repository
from db.states import AlertEventKind, AlertStatus

#: Names the lock that one evaluation holds at a time, and another one that dispatching does.
EVALUATION, DISPATCH = "ops alerts evaluation", "ops alerts dispatch"


class MonitoringAlertRepository(Repository[MonitoringAlert]):
    model = MonitoringAlert
    noun = "alert"

    def get_open(self, fingerprint: str) -> MonitoringAlert | None:
        """The alert of this fingerprint that is not resolved; there is one at most."""
        query = select(MonitoringAlert).where(
            MonitoringAlert.fingerprint == fingerprint, MonitoringAlert.status != AlertStatus.RESOLVED
        )
        return self.session.scalar(query)

    def search(
        self,
        *,
        status: AlertStatus | str | None = None,
        application_id: int | None = None,
        infrastructure_id: int | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> Page[MonitoringAlert]:
        """Alerts newest first. Raises InvalidInput for no status."""
        asked = {"status": status, "application_id": application_id, "infrastructure_id": infrastructure_id}
        where = [getattr(MonitoringAlert, name) == value for name, value in asked.items() if value is not None]
        return self.list_(*where, limit=limit, before=before)

    def list_open(self, *, limit: int = 50, before: int | None = None) -> Page[MonitoringAlert]:
        """Those that are not resolved, newest first."""
        return self.list_(MonitoringAlert.status != AlertStatus.RESOLVED, limit=limit, before=before)

    def take_turn(self, what: str) -> bool:
        """True for one transaction at a time, until it ends."""
        return bool(self.session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(what, 0)))))

    def now(self) -> datetime:
        """The database's clock."""
        found: datetime = self.session.scalars(select(func.clock_timestamp())).one()
        return found

    def uncleared(self) -> Sequence[MonitoringAlert]:
        """Those whose cause has not been seen to be over, oldest first; a person may have resolved them meanwhile."""
        query = select(MonitoringAlert).where(MonitoringAlert.cleared_at.is_(None)).order_by(MonitoringAlert.id)
        return self.session.scalars(query, execution_options={"populate_existing": True}).all()

    def unsettled(self) -> Sequence[MonitoringAlert]:
        """Those that have fired and are not told of to their end, oldest first."""
        query = select(MonitoringAlert).where(
            MonitoringAlert.settled_at.is_(None), MonitoringAlert.status != AlertStatus.PENDING
        )
        query = query.order_by(MonitoringAlert.id)
        return self.session.scalars(query, execution_options={"populate_existing": True}).all()

    def has_episode(self, fingerprint: str, episode: str) -> bool:
        """Whether an alert has told of this time already."""
        query = select(MonitoringAlert.id).where(
            MonitoringAlert.fingerprint == fingerprint, MonitoringAlert.episode == episode
        )
        return self.session.scalar(query.limit(1)) is not None

    def open_one(self, values: dict[str, Any]) -> int | None:
        """Insert; the id, or None where one of this fingerprint is open already."""
        apply_context(self.session)
        statement = insert(MonitoringAlert).values(**values)
        statement = statement.on_conflict_do_nothing(
            index_elements=[MonitoringAlert.fingerprint],
            index_where=text("status <> 'resolved'"),  # as the index has it: a parameter would not match it
        )
        return self.session.scalar(statement.returning(MonitoringAlert.id))

    def fire(self, alert_id: int) -> bool:
        """Compare and set: pending -> firing."""
        return self._move(
            alert_id, AlertStatus.PENDING, status=AlertStatus.FIRING, fired_at=func.clock_timestamp()
        )  # fmt: skip

    def withdraw(self, alert_id: int) -> bool:
        """Compare and set: remove it while it is pending; nothing was."""
        apply_context(self.session)
        statement = delete(MonitoringAlert).where(
            MonitoringAlert.id == alert_id, MonitoringAlert.status == AlertStatus.PENDING
        )
        return self.session.scalar(statement.returning(MonitoringAlert.id), execution_options=_BULK) is not None

    def end(self, alert_id: int) -> bool:
        """Compare and set: firing -> resolved, since it is over."""
        now = func.clock_timestamp()
        return self._move(
            alert_id, AlertStatus.FIRING, status=AlertStatus.RESOLVED, resolved_at=now, cleared_at=now
        )  # fmt: skip

    def tell(self, alert_id: int, values: dict[str, Any]) -> bool:
        """Compare and set: an open one says more."""
        return self._set(alert_id, **values) is not None

    def clear(self, alert_id: int) -> bool:
        """Compare and set: what a person had resolved is over."""
        apply_context(self.session)
        statement = (
            update(MonitoringAlert)
            .where(MonitoringAlert.id == alert_id, MonitoringAlert.cleared_at.is_(None))
            .where(MonitoringAlert.status == AlertStatus.RESOLVED)
            .values(cleared_at=func.clock_timestamp())
        )
        return self.session.scalar(statement.returning(MonitoringAlert.id), execution_options=_BULK) is not None

    def settle(self, alert_ids: Sequence[int]) -> None:
        """These are resolved, and all is told, or about to be."""
        apply_context(self.session)
        statement = update(MonitoringAlert).where(
            MonitoringAlert.id.in_(alert_ids), MonitoringAlert.status == AlertStatus.RESOLVED
        )
        self.session.execute(statement.values(settled_at=func.clock_timestamp()), execution_options=_BULK)

    def acknowledge(self, alert_id: int, user_id: int | None) -> MonitoringAlert | None:
        """Compare and set: the alert, or None when it is resolved, acknowledged already, or gone."""
        return self._set(
            alert_id, MonitoringAlert.acknowledged_at.is_(None),
            acknowledged_at=func.clock_timestamp(), acknowledged_by_id=user_id,
        )  # fmt: skip

    def assign(self, alert_id: int, user_id: int | None) -> MonitoringAlert | None:
        """Compare and set: the alert, or None when it is resolved, or gone."""
        return self._set(alert_id, assigned_to_id=user_id)

    def resolve(self, alert_id: int, user_id: int | None = None) -> MonitoringAlert | None:
        """Compare and set: the alert, or None when it is resolved already, or gone. A pending one has fired now."""
        return self._set(
            alert_id, status=AlertStatus.RESOLVED, resolved_at=func.clock_timestamp(), resolved_by_id=user_id,
            fired_at=func.coalesce(MonitoringAlert.fired_at, func.clock_timestamp()),
        )  # fmt: skip

    def _move(self, alert_id: int, was: AlertStatus, **values: Any) -> bool:
        return self._set(alert_id, MonitoringAlert.status == was, **values) is not None

    def _set(self, alert_id: int, *where: Any, **values: Any) -> MonitoringAlert | None:
        apply_context(self.session)
        query = (
            update(MonitoringAlert)
            .where(MonitoringAlert.id == alert_id, MonitoringAlert.status != AlertStatus.RESOLVED, *where)
            .values(updated_at=func.clock_timestamp(), **values)
            .returning(MonitoringAlert)
        )
        return self.session.scalar(query, execution_options={"populate_existing": True})

    def remove_old(self, days: int, limit: int) -> int:
        """Remove alerts that were resolved so long ago, with all that was told of them."""
        old = (
            select(MonitoringAlert.id)
            .where(MonitoringAlert.resolved_at < func.now() - text(f"interval '{int(days)} days'"))
            .where(MonitoringAlert.cleared_at.is_not(None))
            .order_by(MonitoringAlert.resolved_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        statement = delete(MonitoringAlert).where(MonitoringAlert.id.in_(old)).returning(MonitoringAlert.id)
        return len(self.session.scalars(statement, execution_options=_BULK).all())


class AlertEventRepository:
    """Timelines."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, alert_ids: int | Sequence[int], kind: AlertEventKind, message: str | None = None) -> None:
        """One line for each of these alerts, by whoever acts in this session."""
        ids = [alert_ids] if isinstance(alert_ids, int) else list(alert_ids)
        if not ids:
            return
        apply_context(self.session)
        actor = str(context_of(self.session).get("actor") or "system")
        rows = [{"alert_id": alert_id, "kind": kind, "actor": actor, "message": message} for alert_id in ids]
        self.session.execute(insert(AlertEvent), rows)

    def list_(self, alert_id: int, limit: int = 1000) -> Sequence[AlertEvent]:
        """An alert's timeline in order: its newest lines."""
        query = select(AlertEvent).where(AlertEvent.alert_id == alert_id).order_by(AlertEvent.id.desc()).limit(limit)
        return list(reversed(self.session.scalars(query).all()))


_BULK = {"synchronize_session": False}
