"""Checks in a document. What is new belongs to who applies it; an owner is never changed, nor whether one is paused.

A heartbeat's token is made here and is in no document.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import model_validator
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.errors import InvalidInput, OpsError
from db.fields import Name
from db.models import Application, Infrastructure, MonitoringCheck, User
from db.probes import KINDS, CheckSpec
from db.repositories import ApplicationRepository, InfrastructureRepository
from db.services import checks
from db.services.declared.kind import At, Choice, Found, Kind
from db.specs import check
from db.states import CheckKind

_LINKS = ("application", "infrastructure")


class DeclaredCheck(CheckSpec):
    """A check; ``application`` and ``infrastructure`` are the names of what it looks at."""

    application: Name | None = None
    infrastructure: Name | None = None

    @model_validator(mode="after")
    def _in_fewest_words(self) -> DeclaredCheck:
        config = check(KINDS[self.kind], self.config, "config")
        self.config = config.model_dump(mode="json", exclude_defaults=True)
        return self


class Checks(Kind):
    key = "checks"
    noun = "check"
    spec = DeclaredCheck
    choices = (Choice("kind", "config", {kind.value: spec for kind, spec in KINDS.items()}),)

    def found(self, session: Session) -> Iterable[Found]:
        fields = [name for name in CheckSpec.model_fields if name != "name"]
        query = (
            select(MonitoringCheck, Application.name, Infrastructure.name)
            .outerjoin(Application, Application.id == MonitoringCheck.application_id)
            .outerjoin(Infrastructure, Infrastructure.id == MonitoringCheck.infrastructure_id)
            .order_by(func.lower(MonitoringCheck.name))
        )
        for row, *links in session.execute(query):
            values = {field: getattr(row, field) for field in fields} | dict(zip(_LINKS, links, strict=True))
            yield Found(row, row.name, self.stored(row.name, values))

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        checks.add(session, owner_id=actor.id, actor=actor, name=name, **self._linked(session, values))

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:
        if CheckKind(values["kind"]) is not row.kind:
            raise At(("kind",), InvalidInput("the kind of a check stays; remove it and add another"))
        whole = self._linked(session, self.whole(values)) | {"name": name}
        whole["config"] = check(KINDS[row.kind], whole["config"]).model_dump(mode="json")
        # What is as it was is not named: an interval that is named makes the check run at once.
        changed = {field: value for field, value in whole.items() if getattr(row, field) != value}
        checks.edit(session, found=row, actor=actor, **changed)

    def remove(self, session: Session, row: Any, actor: User) -> None:
        checks.remove(session, found=row, actor=actor)

    @staticmethod
    def _linked(session: Session, values: dict[str, Any]) -> dict[str, Any]:
        """The values with ids for the names of what it looks at. Raises At."""
        rows = {"application": ApplicationRepository(session), "infrastructure": InfrastructureRepository(session)}
        linked = {name: value for name, value in values.items() if name not in _LINKS}
        for field, repository in rows.items():
            if field not in values:
                continue
            name = values[field]
            try:
                found = None if name is None else repository.require_by_name(name)  # type: ignore[attr-defined]
            except OpsError as error:
                raise At((field,), error) from None
            linked[f"{field}_id"] = None if found is None else found.id
        return linked
