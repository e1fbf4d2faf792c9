"""What every repository has. One statement per method; sessions are given, never looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from db.connection import savepoint
from db.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from db.models import Base

M = TypeVar("M", bound=Base)
MAX_LIMIT = 1000
#: The last row that a page by number reaches.
MAX_OFFSET = 100_000


@dataclass(frozen=True, slots=True)
class Page(Generic[M]):
    """Rows in order, and where the next page starts (None: there is none)."""

    items: Sequence[M]
    next: int | None


@dataclass(frozen=True, slots=True)
class NumberedPage(Generic[M]):
    """Rows in order, by the page's number from 1. ``total`` is None unless it was asked for: counting reads all."""

    items: Sequence[M]
    number: int
    size: int
    has_next: bool
    total: int | None


def bounded(limit: int) -> int:
    """A page's length as it is granted. Raises InvalidInput for no number."""
    if not is_number(limit):
        raise InvalidInput("the length of a page is a number")
    return max(1, min(limit, MAX_LIMIT))


def is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def keyset(session: Session, query: Select[Any], column: Any, limit: int, before: int | None) -> Page[Any]:
    """The rows of a query newest first by a column that is a key. Raises InvalidInput for what are no numbers."""
    limit = bounded(limit)
    if before is not None:
        if not is_number(before):
            raise InvalidInput("a page starts before the key of a row, which is a number")
        query = query.where(column < max(0, min(before, 2**63 - 1)))
    rows = session.scalars(query.order_by(column.desc()).limit(limit + 1)).all()
    return Page(rows[:limit], getattr(rows[limit - 1], column.key) if len(rows) > limit else None)


class Repository(Generic[M]):
    """Rows of one table, newest first, in pages by key."""

    model: ClassVar[type[Any]]
    noun: ClassVar[str]
    #: What a list does not load: large or encrypted columns.
    list_options: ClassVar[tuple[Any, ...]] = ()

    def __init__(self, session: Session) -> None:
        self.session = session

    def get(self, key: Any, *options: Any) -> M | None:
        """The row, or None. Options say what to load with it. Raises InvalidInput for what is no key."""
        if not is_number(key):
            raise InvalidInput(f"the id of {self._a()} is a number")
        if not 0 < key < 2**63:
            return None  # the database would not take it for a key
        if not options:
            return self.session.get(self.model, key)
        # Asked for even where the session has the row: it may not have loaded with it what is wanted now.
        return self.session.scalar(select(self.model).where(self.model.id == key).options(*options))

    def require(self, key: Any, *options: Any) -> M:
        """The row. Raises NotFound, InvalidInput."""
        row = self.get(key, *options)
        if row is None:
            raise NotFound(f"there is no {self.noun} {key}")
        return row

    def add(self, row: M) -> M:
        """Insert. Raises AlreadyExists when a unique name is taken; the session stays usable."""
        try:
            with savepoint(self.session):
                self.session.add(row)
        except IntegrityError as error:
            raise self._explain(error) from None
        return row

    def change(self, row: M, /, **values: Any) -> M:
        """Set columns. Raises Conflict when somebody else has changed the row in the meantime, AlreadyExists when a
        unique name is taken; then the row is as the database has it, and the session stays usable."""
        try:
            with savepoint(self.session):
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
            with savepoint(self.session):
                self.session.delete(row)
        except StaleDataError:
            raise self._overtaken() from None
        except IntegrityError as error:
            raise self._explain(error) from None

    def list_(
        self, *where: ColumnElement[bool], limit: int = 50, before: int | None = None, options: Sequence[Any] = ()
    ) -> Page[M]:
        """Rows newest first; ``before`` is the ``next`` of the page before."""
        query = select(self.model).where(*where).options(*self.list_options, *options)
        return keyset(self.session, query, self.model.id, limit, before)

    def page(
        self,
        *where: ColumnElement[bool],
        number: int = 1,
        size: int = 50,
        count: bool = False,
        options: Sequence[Any] = (),
    ) -> NumberedPage[M]:
        """Rows newest first by the page's number, for where people leaf; late pages read all before them, and a row
        that comes meanwhile moves the others on. ``count`` asks for the total as well. Raises InvalidInput."""
        size = bounded(size)
        if not is_number(number) or not 1 <= number <= MAX_OFFSET // size:
            raise InvalidInput("the number of a page starts at 1; later rows are reached by list_")
        query = select(self.model).where(*where).order_by(self.model.id.desc())
        query = query.options(*self.list_options, *options).limit(size + 1).offset((number - 1) * size)
        rows = self.session.scalars(query).all()
        total = self.session.scalar(select(func.count()).select_from(self.model).where(*where)) if count else None
        return NumberedPage(rows[:size], number, size, len(rows) > size, total)

    def expect(self, row: M, version_id: int | None) -> None:
        """Raises Conflict unless the row is as somebody saw it who edits it (None: whatever it is by now)."""
        if version_id is not None and getattr(row, "version_id", None) != version_id:
            raise self._overtaken()

    def _a(self) -> str:
        return f"{'an' if self.noun[0] in 'aeio' else 'a'} {self.noun}"

    def _overtaken(self) -> Conflict:
        return Conflict(f"this {self.noun} has been changed by somebody else; look again")

    def _explain(self, error: IntegrityError) -> AlreadyExists | Conflict:
        diagnostic = getattr(error.orig, "diag", None)
        name = getattr(diagnostic, "constraint_name", None) or ""
        state = getattr(error.orig, "sqlstate", "")
        if state == "23505":
            # Of a key within something else, such as infrastructure_id_name, people chose the end.
            what = name.removeprefix(f"uq_{self.model.__tablename__}_").rpartition("_id_")[2].replace("_", " ")
            return AlreadyExists(f"{self._a()} with this {what or 'key'} exists already")
        if state in ("23503", "23001"):  # the second is RESTRICT's own, since PostgreSQL 18
            other = getattr(diagnostic, "table_name", None) or "other rows"
            if other == self.model.__tablename__:
                return Conflict(f"this {self.noun} needs something that has just been removed")
            return Conflict(f"this {self.noun} is still used by {other}")
        return Conflict(f"this {self.noun} is refused by the rule {name}")
