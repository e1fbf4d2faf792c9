"""Rules in a document: those that are not as shipped. Pruned, one is as shipped again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field
from sqlalchemy.orm import Session

from db.channels import RuleSpec
from db.models import User
from db.repositories import AlertRuleRepository
from db.services import rules
from db.services.declared.kind import Found, Kind


class DeclaredRule(RuleSpec):
    """A rule, whose name is its key; what is left out is as shipped."""

    name: str
    enabled: bool = Field(True)


class Rules(Kind):
    key = "rules"
    noun = "rule"
    spec = DeclaredRule

    def found(self, session: Session) -> Iterable[Found]:
        known = rules.known_names()
        for name, row in AlertRuleRepository(session).all_().items():
            if name in known:
                values = {field: getattr(row, field) for field in RuleSpec.model_fields}
                yield Found(row, name, self.stored(name, values))

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        rules.declare(session, name=name, actor=actor, **self.whole(values))

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:  # noqa: ARG002
        rules.declare(session, name=name, actor=actor, **self.whole(values))

    def remove(self, session: Session, row: Any, actor: User) -> None:
        rules.reset(session, name=row.name, actor=actor)
