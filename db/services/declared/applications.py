"""Applications in a document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import Application, User
from db.services import applications
from db.services.declared.kind import Found, Kind
from db.specs import ApplicationSpec


class Applications(Kind):
    key = "applications"
    noun = "application"
    spec = ApplicationSpec

    def found(self, session: Session) -> Iterable[Found]:
        fields = [name for name in ApplicationSpec.model_fields if name != "name"]
        for row in session.scalars(select(Application).order_by(func.lower(Application.name))):
            values = {field: getattr(row, field) for field in fields}
            yield Found(row, row.name, self.stored(row.name, values))

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        applications.register(session, actor=actor, name=name, **values)

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:
        applications.edit(session, application=row, actor=actor, name=name, **self.whole(values))

    def remove(self, session: Session, row: Any, actor: User) -> None:
        applications.remove(session, application=row, actor=actor)
