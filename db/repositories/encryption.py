"""Encryption keys, and what is stored under each: of our tables, and of any other with an encrypted column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    MetaData,
    Table,
    Text,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.encryption import Encrypted
from db.errors import InvalidInput
from db.keyring import VERSION
from db.models import EncryptionKey

#: No key's part of a stored value is longer; the rest of a large one is not read to count it.
_HEAD = 40


class EncryptionKeyRepository:
    """Keys that this database has seen."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def list_(self) -> Sequence[EncryptionKey]:
        return self.session.scalars(select(EncryptionKey).order_by(EncryptionKey.created_at, EncryptionKey.id)).all()

    def lock_(self, key_id: str) -> EncryptionKey | None:
        """The key, with nobody left who could store what it has sealed until this transaction ends."""
        return self.session.scalar(select(EncryptionKey).where(EncryptionKey.id == key_id).with_for_update())

    def retire(self, key: EncryptionKey) -> None:
        """For good: it seals nothing any more, and nothing tells its id from another key's."""
        key.check_value = None
        key.retired_at = func.clock_timestamp()
        self.session.flush()


@dataclass(frozen=True)
class StoredRow:
    """One row: its primary key, and its encrypted columns as they are stored."""

    key: tuple[Any, ...]
    stored: dict[str, str | None]

    @property
    def id(self) -> str:
        """The primary key as text; parts of a composite one are joined by a slash, which is escaped within them."""
        parts = list(map(str, self.key))
        if len(parts) == 1:
            return parts[0]
        return "/".join(part.replace("\\", "\\\\").replace("/", "\\/") for part in parts)


class EncryptedTable:
    """A table with encrypted columns. Statements here see what is stored, never what it means."""

    def __init__(self, table: Table) -> None:
        """Raises InvalidInput for a table whose rows cannot be told apart."""
        self.table = table
        self.columns: dict[str, Column[Any]] = {c.name: c for c in table.columns if isinstance(c.type, Encrypted)}
        self.key: list[Column[Any]] = list(table.primary_key.columns)
        if not self.key:
            raise InvalidInput(f"table {table.fullname} has no primary key, so its rows cannot be told apart")

    @property
    def name(self) -> str:
        return self.table.fullname

    def label(self, column: str) -> str:
        kind = self.columns[column].type
        assert isinstance(kind, Encrypted)
        return kind.label

    def is_here(self, session: Session) -> bool:
        name = session.connection().dialect.identifier_preparer.format_table(self.table)
        return session.scalar(select(func.to_regclass(name))) is not None

    def usage(self, session: Session, column: str) -> Mapping[str | None, int]:
        """Rows by the id of their key, in one pass over the table; None: what is stored there is not encrypted."""
        stored = type_coerce(self.columns[column], Text())
        is_ours = func.left(stored, len(VERSION) + 1) == f"{VERSION}:"
        key_id = case((is_ours, func.split_part(func.left(stored, _HEAD), ":", 2)))
        query = select(key_id, func.count()).select_from(self.table).where(stored.is_not(None)).group_by(text("1"))
        return {row[0]: row[1] for row in session.execute(query)}

    def not_of(self, session: Session, key_id: str) -> int:
        """How many rows hold a value that another key has sealed."""
        return session.scalar(select(func.count()).select_from(self.table).where(self._is_not_of(key_id))) or 0

    def after(
        self, session: Session, key_id: str | None, last: tuple[Any, ...] | None, limit: int, *, lock: bool = True
    ) -> list[StoredRow]:
        """The next rows by primary key that hold a value of another key (None: any value). With ``lock`` those that
        others hold are left out."""
        stored = [type_coerce(column, Text()).label(f"stored_{n}") for n, column in enumerate(self.columns.values())]
        query = select(*self.key, *stored).where(self._is_not_of(key_id)).order_by(*self.key).limit(limit)
        if last is not None:
            bound = [literal(value, column.type) for value, column in zip(last, self.key, strict=True)]
            query = query.where(tuple_(*self.key) > tuple_(*bound))
        if lock:
            query = query.with_for_update(skip_locked=True, of=self.table)
        width = len(self.key)
        return [
            StoredRow(tuple(row[:width]), dict(zip(self.columns, row[width:], strict=True)))
            for row in session.execute(query)
        ]

    def replace(self, session: Session, rows: Sequence[StoredRow]) -> None:
        """Store these instead. What else the row tells of itself (``updated_at``, a version) stays: whoever edits the
        row meanwhile is not disturbed."""
        if not rows:
            return
        apply_context(session)
        values: dict[str, Any] = {c.name: c for c in self.table.columns if c.onupdate is not None}
        values |= {name: bindparam(f"stored_{n}", type_=Text()) for n, name in enumerate(self.columns)}
        where = [column == bindparam(f"key_{n}", type_=column.type) for n, column in enumerate(self.key)]
        session.execute(
            self.table.update().where(*where).values(values),
            [
                {f"key_{n}": part for n, part in enumerate(row.key)}
                | {f"stored_{n}": row.stored[name] for n, name in enumerate(self.columns)}
                for row in rows
            ],
        )

    def _is_not_of(self, key_id: str | None) -> ColumnElement[bool]:
        if key_id is None:
            return or_(*(type_coerce(column, Text()).is_not(None) for column in self.columns.values()))
        prefix = f"{VERSION}:{key_id}:"
        return or_(*(func.left(type_coerce(c, Text()), len(prefix)) != prefix for c in self.columns.values()))


def encrypted_tables(metadata: Iterable[MetaData]) -> list[EncryptedTable]:
    """The tables that have encrypted columns, each once, by name. Raises InvalidInput."""
    tables = {table.fullname: table for each in metadata for table in each.tables.values()}
    return [
        EncryptedTable(tables[name])
        for name in sorted(tables)
        if any(isinstance(column.type, Encrypted) for column in tables[name].columns)
    ]
