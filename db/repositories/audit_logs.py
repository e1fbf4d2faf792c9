"""The audit trail: search it, add what is no row change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, cast, func, null, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.models import AuditLog
from db.repositories.base import MAX_LIMIT, Page


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

    def search(
        self,
        *,
        resource: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        task_id: UUID | None = None,
        changed: str | None = None,
        to: Any = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> Page[Any]:
        """Entries newest first. ``resource`` is ``type`` or ``type:id``; ``action`` may end in ``.*``;
        ``changed`` with ``to`` finds a column set to a value."""
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
                AuditLog.action.startswith(action[:-1], autoescape=True)
                if action.endswith(".*")
                else AuditLog.action == action
            )
        if task_id is not None:
            where.append(AuditLog.task_id == task_id)
        if changed is not None:
            if to is not None:
                # The index finds rows that have the value on either side; the second line picks the new one.
                where.append(AuditLog.changes.contains({changed: [to]}))
                where.append(AuditLog.changes[changed][1] == cast(to, JSONB))
            else:
                where.append(AuditLog.changes.has_key(changed))
        if since is not None:
            where.append(AuditLog.at >= since)
        if until is not None:
            where.append(AuditLog.at < until)
        return self._page(where, limit, before)

    def story(self, resources: Sequence[tuple[str, str]], *, limit: int = 500) -> Sequence[AuditLog]:
        """Everything that happened to these resources, in order."""
        if not resources:
            return []
        match = or_(*((AuditLog.resource_type == kind) & (AuditLog.resource_id == key) for kind, key in resources))
        return self.session.scalars(select(AuditLog).where(match).order_by(AuditLog.id).limit(limit)).all()

    def get_user_activity(self, user_id: int, *, limit: int = 50, before: int | None = None) -> Sequence[AuditLog]:
        """What a user did, newest first."""
        return self._page([AuditLog.actor_type == "user", AuditLog.actor_id == user_id], limit, before).items

    def _page(self, where: list[ColumnElement[bool]], limit: int, before: int | None) -> Page[Any]:
        if before is not None:
            where.append(AuditLog.id < before)
        limit = max(1, min(limit, MAX_LIMIT))
        rows = self.session.scalars(select(AuditLog).where(*where).order_by(AuditLog.id.desc()).limit(limit + 1)).all()
        return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)
