"""Alerts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update

from db.connection import apply_context
from db.models import MonitoringAlert
from db.repositories.base import Page, Repository
from db.states import AlertStatus


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

    def acknowledge(self, alert_id: int, user_id: int | None) -> MonitoringAlert | None:
        """Compare and set: the alert, or None when it is resolved, acknowledged already, or gone."""
        return self._set(
            alert_id, MonitoringAlert.acknowledged_at.is_(None),
            acknowledged_at=func.clock_timestamp(), acknowledged_by_id=user_id,
        )  # fmt: skip

    def resolve(self, alert_id: int) -> MonitoringAlert | None:
        """Compare and set: the alert, or None when it is resolved already, or gone."""
        return self._set(alert_id, status=AlertStatus.RESOLVED, resolved_at=func.clock_timestamp())

    def _set(self, alert_id: int, *where: Any, **values: Any) -> MonitoringAlert | None:
        apply_context(self.session)
        query = (
            update(MonitoringAlert)
            .where(MonitoringAlert.id == alert_id, MonitoringAlert.status != AlertStatus.RESOLVED, *where)
            .values(updated_at=func.clock_timestamp(), **values)
            .returning(MonitoringAlert)
        )
        return self.session.scalar(query, execution_options={"populate_existing": True})
