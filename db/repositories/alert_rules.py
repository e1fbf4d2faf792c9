"""What people have changed of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.models import AlertRule


class AlertRuleRepository:
    """A handful of rows."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def all_(self) -> Mapping[str, AlertRule]:
        """By name."""
        query = select(AlertRule).order_by(AlertRule.name)
        rows = self.session.scalars(query, execution_options={"populate_existing": True})
        return {row.name: row for row in rows}

    def set_(self, name: str, values: dict[str, Any]) -> AlertRule:
        """Insert or change; columns that are not named stay."""
        apply_context(self.session)
        statement = insert(AlertRule).values(name=name, **values)
        statement = statement.on_conflict_do_update(
            index_elements=[AlertRule.name], set_=values | {"updated_at": func.clock_timestamp()}
        )
        query = statement.returning(AlertRule)
        return self.session.scalars(query, execution_options={"populate_existing": True}).one()

    def forget(self, name: str) -> bool:
        """Remove what was changed of a rule; False: nothing was."""
        apply_context(self.session)
        statement = delete(AlertRule).where(AlertRule.name == name).returning(AlertRule.name)
        return self.session.scalar(statement) is not None
