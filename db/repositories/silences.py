"""Silences and maintenance windows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.models import MaintenanceWindow, Silence
from db.repositories.base import Repository

W = TypeVar("W", Silence, MaintenanceWindow)


class WindowRepository(Repository[W]):
    """Spans of time for what matches."""

    model: ClassVar[type[Any]]

    def active(self) -> Sequence[W]:
        """Those that hold now."""
        now = func.now()
        query = select(self.model).where(
            self.model.starts_at <= now, self.model.ends_at > now, self.model.ended_at.is_(None)
        )
        return self.session.scalars(query.order_by(self.model.id)).all()

    def between(self, start: datetime, end: datetime, limit: int = 1000) -> Sequence[W]:
        """Those that held at some time between, by their start."""
        until = func.least(self.model.ends_at, func.coalesce(self.model.ended_at, self.model.ends_at))
        query = select(self.model).where(self.model.starts_at < end, until > start)
        return self.session.scalars(query.order_by(self.model.starts_at, self.model.id).limit(limit)).all()

    def end(self, window_id: int) -> W | None:
        """Compare and set: the window, or None when it has ended already, or is gone."""
        apply_context(self.session)
        statement = (
            update(self.model)
            .where(self.model.id == window_id, self.model.ended_at.is_(None), self.model.ends_at > func.now())
            .values(ended_at=func.clock_timestamp())
            .returning(self.model)
        )
        found: W | None = self.session.scalar(statement, execution_options={"populate_existing": True})
        return found


class SilenceRepository(WindowRepository[Silence]):
    model = Silence
    noun = "silence"


class MaintenanceWindowRepository(WindowRepository[MaintenanceWindow]):
    model = MaintenanceWindow
    noun = "maintenance window"


def active(session: Session) -> tuple[Sequence[Silence], Sequence[MaintenanceWindow]]:
    """What is silenced, and what is worked on."""
    return SilenceRepository(session).active(), MaintenanceWindowRepository(session).active()
