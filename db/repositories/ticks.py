"""When periodic jobs ran."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
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
