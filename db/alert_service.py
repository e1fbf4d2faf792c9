"""What an embedding application does with alerts: a part of :class:`db.service.DatabaseService`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from db.channels import SpanSpec
from db.fields import check
from db.front import Front, Listing
from db.models import AlertEvent, MaintenanceWindow, MonitoringAlert, Silence
from db.repositories import (
    AlertEventRepository,
    MaintenanceWindowRepository,
    MonitoringAlertRepository,
    SilenceRepository,
    UserRepository,
)
from db.services import alerts, silences
from db.specs import AlertFilter
from db.states import AlertStatus


class AlertService(Front):
    """Alerts are raised and resolved by a tick; people look after them, silence them, and plan maintenance. Times
    without a zone are taken for UTC."""

    def list_alerts(
        self,
        *,
        status: AlertStatus | str | None = None,
        application_id: int | None = None,
        infrastructure_id: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Listing[MonitoringAlert]:
        asked = check(
            AlertFilter, {"status": status, "application_id": application_id, "infrastructure_id": infrastructure_id}
        )
        return self._list("alerts", MonitoringAlertRepository(self._reading()).search, limit, cursor, **dict(asked))

    def get_alert(self, alert_id: int) -> MonitoringAlert:
        """Raises NotFound."""
        return MonitoringAlertRepository(self._reading()).require(alert_id)

    def read_alert_timeline(self, alert_id: int) -> Sequence[AlertEvent]:
        """What happened to it, oldest first. Raises NotFound."""
        alert = MonitoringAlertRepository(self._reading()).require(alert_id)
        return AlertEventRepository(self.session).list_(alert.id)

    def acknowledge_alert(self, alert_id: int) -> MonitoringAlert:
        """Say that the actor looks after it: it is not repeated any more. Raises NotFound, Conflict."""
        return alerts.acknowledge(self.session, alert_id=alert_id, actor=self.actor)

    def assign_alert(self, alert_id: int, user_id: int | None) -> MonitoringAlert:
        """Say who is to look after it; None: nobody. Raises NotFound, Conflict."""
        user = None if user_id is None else UserRepository(self.session).require(user_id)
        return alerts.assign(self.session, alert_id=alert_id, user=user, actor=self.actor)

    def note_alert(self, alert_id: int, text: str) -> None:
        """Write a line into its timeline. Raises NotFound."""
        alerts.note(self.session, alert_id=alert_id, text=text, actor=self.actor)

    def resolve_alert(self, alert_id: int) -> MonitoringAlert:
        """Close it by hand; it is raised anew when it fails again. Raises NotFound, Conflict."""
        return alerts.resolve(self.session, alert_id=alert_id, actor=self.actor)

    def silence_alert(self, alert_id: int, ends_at: datetime, comment: str | None = None) -> Silence:
        """Tell nobody of it, nor of another one with the same type and labels, until a time. Raises NotFound."""
        until = check(SpanSpec, {"ends_at": ends_at}).ends_at
        return alerts.silence(self.session, alert_id=alert_id, ends_at=until, comment=comment, actor=self.actor)

    def add_silence(
        self,
        matchers: Mapping[str, str],
        ends_at: datetime,
        *,
        starts_at: datetime | None = None,
        comment: str | None = None,
    ) -> Silence:
        """Tell nobody of alerts whose labels match (``*`` stands for anything), for 90 days at most."""
        asked = check(SpanSpec, {"matchers": matchers, "starts_at": starts_at, "ends_at": ends_at})
        return silences.silence(self.session, **dict(asked), comment=comment, actor=self.actor)

    def end_silence(self, silence_id: int) -> Silence:
        """Be told again. Raises NotFound, Conflict."""
        return silences.end_silence(self.session, silence_id=silence_id, actor=self.actor)

    def list_silences(self, *, limit: int = 50, cursor: str | None = None) -> Listing[Silence]:
        """Ended ones too."""
        return self._list("silences", SilenceRepository(self._reading()).list_, limit, cursor)

    def plan_maintenance(
        self, title: str, matchers: Mapping[str, str], ends_at: datetime, *, starts_at: datetime | None = None
    ) -> MaintenanceWindow:
        """Raise and resolve nothing of what matches, for 90 days at most; the title is for those inside."""
        asked = check(SpanSpec, {"matchers": matchers, "starts_at": starts_at, "ends_at": ends_at})
        return silences.maintain(self.session, title=title, **dict(asked), actor=self.actor)

    def end_maintenance(self, window_id: int) -> MaintenanceWindow:
        """The work is done: decide by what is so now. Raises NotFound, Conflict."""
        return silences.end_maintenance(self.session, window_id=window_id, actor=self.actor)

    def list_maintenance(self, *, limit: int = 50, cursor: str | None = None) -> Listing[MaintenanceWindow]:
        """Ended ones too."""
        return self._list("maintenance", MaintenanceWindowRepository(self._reading()).list_, limit, cursor)
