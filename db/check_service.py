"""What an embedding application does with checks: a part of :class:`db.service.DatabaseService`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from db.fields import check
from db.front import Front, Listing
from db.models import MonitoringCheck
from db.repositories import CheckRepository
from db.services import check_history, checks
from db.specs import BeatSpec, CheckFilter, PageSpec, storable
from db.states import CheckKind, CheckState


class CheckService(Front):
    """One check opens its owner's secrets, so nobody but the owner and admins may change it."""

    def add_check(self, /, name: str, kind: CheckKind | str, owner_id: int, **fields: Any) -> MonitoringCheck:
        """Add a check, due at once; fields of :class:`db.probes.CheckSpec`, ``application_id`` and
        ``infrastructure_id``. Raises AlreadyExists, NotFound."""
        return checks.add(self.session, owner_id=owner_id, actor=self.actor, name=name, kind=kind, **fields)

    def edit_check(self, /, check_id: int, *, version_id: int | None = None, **fields: Any) -> MonitoringCheck:
        """Change some fields. Raises NotFound, AlreadyExists, Conflict."""
        rows = CheckRepository(self.session)
        found = rows.require(check_id)
        rows.expect(found, version_id)
        return checks.edit(self.session, found=found, actor=self.actor, **fields)

    def pause_check(self, check_id: int) -> MonitoringCheck:
        """Run it no more. Raises NotFound, Conflict."""
        return checks.pause(self.session, found=CheckRepository(self.session).require(check_id), actor=self.actor)

    def resume_check(self, check_id: int) -> MonitoringCheck:
        """Run it again, from nothing known. Raises NotFound, Conflict."""
        return checks.resume(self.session, found=CheckRepository(self.session).require(check_id), actor=self.actor)

    def remove_check(self, check_id: int) -> None:
        """Remove it with its history. Raises NotFound, Conflict."""
        checks.remove(self.session, found=CheckRepository(self.session).require(check_id), actor=self.actor)

    def get_check(self, check_id: int) -> MonitoringCheck:
        """With its ``standing``. Raises NotFound."""
        return CheckRepository(self._reading()).anew(CheckRepository(self.session).require(check_id).id)

    def list_checks(
        self,
        *,
        state: CheckState | str | None = None,
        kind: CheckKind | str | None = None,
        application_id: int | None = None,
        infrastructure_id: int | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Listing[MonitoringCheck]:
        """Each with its ``standing``."""
        asked = check(CheckFilter, {
            "state": state, "kind": kind, "application_id": application_id, "infrastructure_id": infrastructure_id,
        })  # fmt: skip
        return self._list("checks", CheckRepository(self._reading()).search, limit, cursor, **dict(asked))

    def read_check_history(self, check_id: int, *, results: int = 60) -> dict[str, Any]:
        """Newest results, uptime, latency and incidents, as in :func:`db.services.check_history.summary`. Raises
        NotFound."""
        asked = check(PageSpec, {"limit": results})
        found = CheckRepository(self._reading()).require(check_id)
        return check_history.summary(self.session, found, results=asked.limit)

    def ping_heartbeat(self, name: str, signal: str = "ok") -> None:
        """Report for a heartbeat: ``ok``, ``fail`` or ``start``. Raises NotFound."""
        found = CheckRepository(self.session).require_by_name(storable(name, "a check's name"))
        checks.ping(self.session, found=found, signal=signal, actor=self.actor)

    def beat_heartbeat(self, token: UUID | str, signal: str = "ok") -> int:
        """What ``/ping/<token>`` does, for whoever knows the token, whatever their role. Answers the check's id. Raises
        NotFound."""
        asked = check(BeatSpec, {"token": token, "signal": signal})
        return checks.beat(self.session, token=asked.token, signal=asked.signal)
