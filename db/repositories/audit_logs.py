"""The audit trail: search it, add what is no row change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, cast, func, literal_column, null, or_, select
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.models import APIKey, Application, AuditLog, Deployment, Infrastructure, User
from db.repositories.base import Page, bounded

#: How many of the newest entries are looked at first.
STRETCHES = (2**16, 2**18, 2**20)


class AuditLogRepository:
    """Read-only but for :meth:`add`: row changes are recorded by the database itself."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(
        self, action: str, resource_type: str, resource_id: object = None, details: dict[str, Any] | None = None
    ) -> None:
        """Record something that changes no row: a secret opened, a login that failed."""
        apply_context(self.session)
        function = getattr(func, AuditLog.__table__.schema or "public").ops_audit
        key = None if resource_id is None else str(resource_id)
        document = bindparam("details", details, type_=JSONB(none_as_null=True))
        self.session.execute(select(function(action, resource_type, key, null(), document)))

    def search(self, /, *, limit: int = 50, before: int | None = None, **asked: Any) -> Page[Any]:
        """Entries newest first; ``asked`` as for :meth:`conditions`."""
        where = self.conditions(**asked)
        return self._page(where, limit, before) if asked.get("to") is None else self._look_back(where, limit, before)

    @staticmethod
    def conditions(
        *,
        resource: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        task_id: UUID | None = None,
        changed: str | None = None,
        to: Any = None,
        secret: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[ColumnElement[bool]]:
        """``resource`` is ``type`` or ``type:id``; ``action`` may end in ``.*``; ``changed`` with ``to`` finds a column
        set to a value, or to one of a tuple of values; ``secret`` finds the openings of secrets of that name."""
        where: list[ColumnElement[bool]] = []
        if resource is not None:
            kind, _, key = resource.partition(":")
            where.append(AuditLog.resource_type == kind)
            if key:
                where.append(AuditLog.resource_id == key)
        if actor is not None:
            where.append(AuditLog.actor == actor)
        if action is not None:
            where.append(
                AuditLog.action.like(_escape(action[:-1]) + "%") if action.endswith(".*") else AuditLog.action == action
            )
        if task_id is not None:
            where.append(AuditLog.task_id == task_id)
        if changed is not None:
            where += _changed(changed, to)
        if secret is not None:
            # As the index has it: a parameter could stand for any action.
            where.append(AuditLog.action == literal_column("'secret.opened'"))
            where.append(AuditLog.details[literal_column("'name'")].astext == secret)
        if since is not None:
            where.append(AuditLog.at >= since)
        if until is not None:
            where.append(AuditLog.at < until)
        return where

    def story(self, resources: Sequence[tuple[str, str]], *, limit: int = 500) -> Sequence[AuditLog]:
        """Everything that happened to these resources, in order."""
        if not resources:
            return []
        match = or_(*((AuditLog.resource_type == kind) & (AuditLog.resource_id == key) for kind, key in resources))
        return self.session.scalars(select(AuditLog).where(match).order_by(AuditLog.id).limit(limit)).all()

    def deployments(self, ids: Sequence[int | None]) -> dict[int | None, str]:
        """What these deployments put where, as far as they are still there: ``web v1.2.3 on production``."""
        query = (
            select(Deployment.id, Application.name, Deployment.version, Infrastructure.name)
            .join(Application, Application.id == Deployment.application_id)
            .join(Infrastructure, Infrastructure.id == Deployment.infrastructure_id)
            .where(Deployment.id.in_({id_ for id_ in ids if isinstance(id_, int)}))
        )
        return {row[0]: f"{row[1]} {row[2]} on {row[3]}" for row in self.session.execute(query)}

    def owners(self, secrets: Sequence[str | None]) -> dict[str | None, str]:
        """Whose secrets these are, as far as they are still there."""
        ids = {int(id_) for id_ in secrets if id_ is not None and id_.isdecimal()}
        query = select(APIKey.id, User.username).join(User, User.id == APIKey.user_id).where(APIKey.id.in_(ids))
        return {str(id_): name for id_, name in self.session.execute(query)}

    def get_user_activity(self, user_id: int, *, limit: int = 50, before: int | None = None) -> Sequence[AuditLog]:
        """What a user did, newest first."""
        return self._page([AuditLog.actor_type == "user", AuditLog.actor_id == user_id], limit, before).items

    def _look_back(self, where: list[ColumnElement[bool]], limit: int, before: int | None) -> Page[Any]:
        """A page of what is found by an index without an order: of all that it finds only as much is read as the
        page needs, from a stretch of the newest entries, then from longer ones, then from the rest."""
        limit = bounded(limit)
        end = before if before is not None else (self.session.scalar(select(func.max(AuditLog.id))) or 0) + 1
        rows: list[Any] = []
        begins = [0, *(end - stretch for stretch in reversed(STRETCHES))]
        while end > 0 and len(rows) <= limit:
            begin = begins.pop() if begins else 0
            query = select(AuditLog).where(*where, AuditLog.id >= begin, AuditLog.id < end)
            rows += self.session.scalars(query.order_by(AuditLog.id.desc()).limit(limit + 1 - len(rows)))
            end = begin
            if not rows:  # it is rare: there is little of it in all the rest
                begins = []
        return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)

    def _page(self, where: list[ColumnElement[bool]], limit: int, before: int | None) -> Page[Any]:
        if before is not None:
            where.append(AuditLog.id < before)
        limit = bounded(limit)
        rows = self.session.scalars(select(AuditLog).where(*where).order_by(AuditLog.id.desc()).limit(limit + 1)).all()
        return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)


def _changed(column: str, to: Any) -> list[ColumnElement[bool]]:
    if to is None:
        return [AuditLog.changes.has_key(column)]
    values = to if isinstance(to, tuple) else (to,)
    # The index finds rows that set anything to the value; the second line picks the column. Asked for both, the index
    # would walk through all rows that changed the column.
    return [
        or_(*(_sets(column, value) for value in values)),
        or_(*(AuditLog.changes[column][1] == cast(value, JSONB) for value in values)),
    ]


def _sets(column: str, value: Any) -> ColumnElement[bool]:
    if isinstance(value, (dict, list)):  # a path compares no documents
        found: ColumnElement[bool] = AuditLog.changes.contains({column: [value]})
    else:
        found = AuditLog.changes.path_exists(cast(f"$.*[1] ? (@ == {json.dumps(value)})", JSONPATH))
    return found


def _escape(text: str) -> str:
    """Text that stands for itself in LIKE."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
