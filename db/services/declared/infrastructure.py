"""Infrastructure in a document. What is new belongs to who applies it; an owner is never changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import Infrastructure, User
from db.repositories import InfrastructureRepository
from db.services import infrastructure
from db.services.declared.kind import Found, Kind
from db.specs import InfrastructureSpec


class Infrastructures(Kind):
    key = "infrastructure"
    noun = "infrastructure"
    spec = InfrastructureSpec

    def found(self, session: Session) -> Iterable[Found]:
        fields = [name for name in InfrastructureSpec.model_fields if name != "name"]
        query = select(Infrastructure).options(*InfrastructureRepository.list_options)
        for row in session.scalars(query.order_by(func.lower(Infrastructure.name))):
            values = {field: getattr(row, field) for field in fields}
            yield Found(row, row.name, self.stored(row.name, values))

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        infrastructure.register(session, owner_id=actor.id, actor=actor, name=name, **values)

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:
        infrastructure.edit(session, infrastructure=row, actor=actor, name=name, **self.whole(values))

    def remove(self, session: Session, row: Any, actor: User) -> None:
        infrastructure.remove(session, infrastructure=row, actor=actor)
