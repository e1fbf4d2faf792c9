"""What an embedding application does with schedules: a part of :class:`db.service.DatabaseService`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from db.fields import check
from db.front import Front, Listing
from db.models import Schedule, ScheduleRun
from db.repositories import ScheduleRepository, ScheduleRunRepository
from db.services import schedules
from db.specs import PageSpec


class ScheduleService(Front):
    """A schedule acts with its user's rights, so nobody but that user and admins may say what it does; any operator
    may pause it."""

    def add_schedule(self, /, name: str, user_id: int, **fields: Any) -> Schedule:
        """Add a schedule; fields of :class:`db.schedule_specs.ScheduleSpec`. Raises AlreadyExists, NotFound."""
        return schedules.register(self.session, user_id=user_id, actor=self.actor, name=name, **fields)

    def edit_schedule(self, /, schedule_id: int, *, version_id: int | None = None, **fields: Any) -> Schedule:
        """Change some fields; another timing counts from now. Raises NotFound, AlreadyExists, Conflict."""
        schedule = self._schedule(schedule_id)
        ScheduleRepository(self.session).expect(schedule, version_id)
        return schedules.edit(self.session, schedule=schedule, actor=self.actor, **fields)

    def pause_schedule(self, schedule_id: int, reason: str | None = None) -> Schedule:
        """Fire it no more; what it has enqueued goes on. Raises NotFound, Conflict."""
        schedule = self._schedule(schedule_id)
        schedules.pause(self.session, schedule=schedule, reason=reason, actor=self.actor)
        return schedule

    def resume_schedule(self, schedule_id: int) -> Schedule:
        """Fire it again, from its next time on. Raises NotFound, Conflict."""
        return schedules.resume(self.session, schedule=self._schedule(schedule_id), actor=self.actor)

    def run_schedule(self, schedule_id: int) -> ScheduleRun:
        """Enqueue what it enqueues, once, beside its own times; it starts after the commit. Raises NotFound, Conflict,
        and what the deployment raises."""
        return schedules.run_now(self.session, schedule=self._schedule(schedule_id), actor=self.actor)

    def remove_schedule(self, schedule_id: int) -> None:
        """Remove it with its history; what it has enqueued goes on. Raises NotFound, Conflict."""
        schedules.remove(self.session, schedule=self._schedule(schedule_id), actor=self.actor)

    def get_schedule(self, schedule_id: int) -> Schedule:
        """With its user, application and infrastructure. Raises NotFound."""
        self._reading()
        return self._schedule(schedule_id)

    def list_schedules(self, *, limit: int = 50, cursor: str | None = None) -> Listing[Schedule]:
        """Each with its user, application and infrastructure."""
        return self._list("schedules", ScheduleRepository(self._reading()).list_, limit, cursor)

    def read_schedule_times(self, schedule_id: int, *, count: int = 5) -> list[datetime]:
        """Its next times; none while it is paused. Raises NotFound."""
        asked = check(PageSpec, {"limit": count})
        self._reading()
        return schedules.upcoming(self.session, schedule=self._schedule(schedule_id), count=asked.limit)

    def read_schedule_runs(self, schedule_id: int, *, limit: int = 20) -> Sequence[ScheduleRun]:
        """What became of its times, newest first. Raises NotFound."""
        asked = check(PageSpec, {"limit": limit})
        self._reading()
        return ScheduleRunRepository(self.session).latest(self._schedule(schedule_id).id, limit=asked.limit)

    def _schedule(self, schedule_id: int) -> Schedule:
        rows = ScheduleRepository(self.session)
        return rows.require(schedule_id, *rows.list_options)
