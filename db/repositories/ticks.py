"""When periodic jobs ran."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.models import Tick


class TickRepository:
    def __init__(self, session: Session) -> None:
        self.session = session
        self._schema = getattr(func, Tick.__table__.schema or "public")

    def get(self, name: str) -> Tick | None:
        return self.session.get(Tick, name)

    def last_success(self, name: str) -> datetime | None:
        """When a periodic job last did its work, now at the latest: the clock may have been set back since. None:
        never."""
        query = select(func.least(Tick.last_success_at, func.clock_timestamp())).where(
            Tick.name == name, Tick.last_success_at.is_not(None)
        )
        found: datetime | None = self.session.scalar(query)
        return found

    def silent_since(self, name: str, longer_than: timedelta) -> datetime | None:
        """When a periodic job last did its work, where that is longer ago than this; else None."""
        found: datetime | None = self.session.scalar(
            select(Tick.last_success_at).where(
                Tick.name == name, Tick.last_success_at < func.clock_timestamp() - longer_than
            )
        )
        return found

    def is_of_the_future(self, name: str) -> bool:
        """Whether it did its work at a time to come: the clock was set back since."""
        ahead = Tick.last_success_at > func.clock_timestamp()
        return bool(self.session.scalar(select(ahead).where(Tick.name == name)))

    def list_(self) -> Sequence[Tick]:
        """All periodic jobs by name; there are a handful."""
        return self.session.scalars(select(Tick).order_by(Tick.name)).all()

    def due(self, name: str, every: timedelta) -> bool:
        """True for one caller per interval, and marks it as run."""
        return bool(self.session.scalar(select(self._schema.ops_tick_due(name, every))))

    def done(self, name: str, details: dict[str, Any] | None) -> None:
        """Record a run: what it changed, or None."""
        apply_context(self.session)
        document = bindparam("details", details, type_=JSONB(none_as_null=True))
        self.session.execute(select(self._schema.ops_tick_done(name, document)))
