"""What the parts of :class:`db.service.DatabaseService` share: the session, who acts, and lists in pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Session

from db import cursors
from db.errors import NotFound
from db.fields import check
from db.models import User
from db.repositories import Page
from db.services import rights
from db.specs import PageSpec
from db.states import Role

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Listing(Generic[M]):
    """Rows newest first, and the cursor of the next page (None: there is none), which is opaque and signed."""

    items: Sequence[M]
    next: str | None


class Front:
    """One noun's methods are one subclass; :class:`db.service.DatabaseService` is all of them."""

    session: Session
    actor: User | None

    def _reading(self) -> Session:
        rights.require(self.actor, Role.VIEWER, "reading")
        return self.session

    def _list(self, noun: str, rows: Any, limit: int, cursor: str | None, **asked: Any) -> Listing[Any]:
        size = check(PageSpec, {"limit": limit}).limit
        before = None if cursor is None else cursors.open_(noun, cursor)
        page: Page[Any] = rows(limit=size, before=before, **asked)
        return Listing(page.items, None if page.next is None else cursors.seal(noun, page.next))


def found(row: M | None, otherwise: str) -> M:
    """The row. Raises NotFound."""
    if row is None:
        raise NotFound(otherwise)
    return row
