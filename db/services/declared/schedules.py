"""Schedules in a document. What is new acts with the rights of who applies it; whether one is paused is not said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

from db.errors import InvalidInput, OpsError
from db.models import User
from db.repositories import ApplicationRepository, InfrastructureRepository, ScheduleRepository
from db.schedule_specs import ScheduleSpec
from db.services import schedules
from db.services.declared.kind import At, Found, Kind


class Schedules(Kind):
    key = "schedules"
    noun = "schedule"
    spec = ScheduleSpec

    def found(self, session: Session) -> Iterable[Found]:
        for row in ScheduleRepository(session).all_with_names():
            try:
                values = schedules.values_of(row)
            except InvalidInput as error:
                raise InvalidInput(f"schedule {row.name} cannot be read: {error}") from None
            yield Found(row, row.name, {name: value for name, value in values.items() if name != "name"})

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        self._refer(session, values)
        schedules.register(session, user_id=actor.id, actor=actor, name=name, **values)

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:
        self._refer(session, values)
        schedules.edit(session, schedule=row, actor=actor, name=name, **self.whole(values))

    def remove(self, session: Session, row: Any, actor: User) -> None:
        schedules.remove(session, schedule=row, actor=actor)

    @staticmethod
    def _refer(session: Session, values: dict[str, Any]) -> None:
        """What it deploys must be there by now. Raises At."""
        deploy = values.get("deploy")
        rows = {"application": ApplicationRepository(session), "infrastructure": InfrastructureRepository(session)}
        for field, repository in rows.items() if deploy else ():
            try:
                repository.require_by_name(deploy[field])  # type: ignore[attr-defined, index]
            except OpsError as error:
                raise At(("deploy", field), error) from None
