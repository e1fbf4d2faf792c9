"""What every repository has. One statement per method; sessions are given, never looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from db.errors import AlreadyExists, Conflict, NotFound
from db.models import Base

M = TypeVar("M", bound=Base)
MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[M]):
    """Rows in order, and where the next page starts (None: there is none)."""

    items: Sequence[M]
    next: int | None


class Repository(Generic[M]):
    """Rows of one table, newest first, in pages by key."""

    model: ClassVar[type[Any]]
    noun: ClassVar[str]
    #: What a list does not load: large or encrypted columns.
    list_options: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, session: Session) -> None:
        self.session = session

    def get(self, key: Any, *options: Any) -> M | None:
        """The row, or None. Options say what to load with it."""
        if isinstance(key, int) and not 0 < key < 2**63:
            return None  # the database would not take it for a key
        return self.session.get(self.model, key, options=options)

    def require(self, key: Any, *options: Any) -> M:
        """The row. Raises NotFound."""
        row = self.get(key, *options)
        if row is None:
            raise NotFound(f"there is no {self.noun} {key}")
        return row

    def add(self, row: M) -> M:
        """Insert. Raises AlreadyExists when a unique name is taken; the session stays usable."""
        try:
            with self.session.begin_nested():
                self.session.add(row)
        except IntegrityError as error:
            raise self._explain(error) from None
        return row

    def change(self, row: M, **values: Any) -> M:
        """Set columns. Raises Conflict when somebody else has changed the row in the meantime, AlreadyExists when a
        unique name is taken; then the row is as the database has it, and the session stays usable."""
        try:
            with self.session.begin_nested():
                for name, value in values.items():
                    setattr(row, name, value)
        except StaleDataError:
            raise self._overtaken() from None
        except IntegrityError as error:
            raise self._explain(error) from None
        return row

    def delete(self, row: M) -> None:
        """Remove. Raises Conflict when other rows need it, or somebody else has changed it in the meantime."""
        try:
            with self.session.begin_nested():
                self.session.delete(row)
        except StaleDataError:
            raise self._overtaken() from None
        except IntegrityError as error:
            raise self._explain(error) from None

    def list_(
        self, *where: ColumnElement[bool], limit: int = 50, before: int | None = None, options: Sequence[Any] = ()
    ) -> Page[M]:
        """Rows newest first; ``before`` is the ``next`` of the page before."""
        query: Select[Any] = select(self.model).where(*where)
        if before is not None:
            query = query.where(self.model.id < before)
        limit = max(1, min(limit, MAX_LIMIT))
        query = query.order_by(self.model.id.desc()).limit(limit + 1).options(*self.list_options, *options)
        rows = self.session.scalars(query).all()
        return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None)

    def _overtaken(self) -> Conflict:
        return Conflict(f"this {self.noun} has been changed by somebody else; look again")

    def _explain(self, error: IntegrityError) -> AlreadyExists | Conflict:
        diagnostic = getattr(error.orig, "diag", None)
        name = getattr(diagnostic, "constraint_name", None) or ""
        state = getattr(error.orig, "sqlstate", "")
        if state == "23505":
            what = name.removeprefix(f"uq_{self.model.__tablename__}_").replace("_", " ")
            article = "an" if self.noun[0] in "aeio" else "a"
            return AlreadyExists(f"{article} {self.noun} with this {what or 'key'} exists already")
        if state in ("23503", "23001"):  # the second is RESTRICT's own, since PostgreSQL 18
            other = getattr(diagnostic, "table_name", None) or "other rows"
            if other == self.model.__tablename__:
                return Conflict(f"this {self.noun} needs something that has just been removed")
            return Conflict(f"this {self.noun} is still used by {other}")
        return Conflict(f"this {self.noun} is refused by the rule {name}")
