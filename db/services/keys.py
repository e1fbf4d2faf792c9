"""Changing encryption keys without downtime: every process holds the new key, it becomes the primary one, everything
is sealed with it, the old one is retired. See docs/keys.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.encryption import Keyring, get_keyring
from db.errors import DecryptionError, EncryptionError, NotFound, Refused
from db.models import EncryptionKey, User
from db.preflight import check_keys
from db.repositories import AuditLogRepository, EncryptedTable, EncryptionKeyRepository, StoredRow
from db.repositories.stats import StatsRepository
from db.services import rights
from db.states import Role

#: Rows that are sealed anew in one transaction.
BATCH = 200
#: How often, and how long after each other, rows that others hold are looked at again.
TRIES, PAUSE_SECONDS = 20, 0.25


@dataclass(frozen=True)
class Holder:
    """A living worker and the ids of its keys, the sealing one first; None: it does not say."""

    name: str
    keys: tuple[str, ...] | None

    @property
    def primary(self) -> str | None:
        return self.keys[0] if self.keys else None


def holders(session: Session) -> list[Holder]:
    """Every living worker. Beats and relays open nothing; an application's own processes say nothing of themselves."""
    rows = [row for row in StatsRepository(session).processes() if row.kind == "worker" and row.alive]
    return [Holder(row.name, tuple(row.info["keys"]) if "keys" in row.info else None) for row in rows]


def usage(session: Session, tables: Sequence[EncryptedTable]) -> dict[tuple[str, str], Mapping[str | None, int]]:
    """Rows by the id of their key, for each table and column; one pass over the table for each column. Raises
    NotFound when a table is not there."""
    require_here(session, tables)
    return {(table.name, column): table.usage(session, column) for table in tables for column in table.columns}


def require_here(session: Session, tables: Sequence[EncryptedTable]) -> None:
    for table in tables:
        if not table.is_here(session):
            raise NotFound(f"there is no table {table.name} in this database, as this role sees it")


@dataclass(frozen=True)
class Promotion:
    """What there is to do: ``was`` seals now; ``lacking`` are the workers that do not hold the new key."""

    key_id: str
    was: str | None
    lacking: list[Holder]
    asked: int


def promote(session: Session, *, key_id: str, force: bool = False, actor: User | None = None) -> Promotion:
    """Make sure that a key may become the primary one: every living worker can open what it seals. Raises Refused,
    EncryptionError, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "promoting an encryption key")
    keyring = get_keyring()
    if keyring.get(key_id) is None:
        raise Refused(
            f"this process does not hold the key {key_id}; it holds: {', '.join(keyring.ids) or 'none'}",
            hint="ops encryption-key add, then start every process anew",
        )
    check_keys(session.connection())
    if session.get_one(EncryptionKey, key_id).retired_at is not None:
        raise Refused(f"the key {key_id} was retired and seals nothing any more", hint="ops encryption-key add")
    living = holders(session)
    found = Promotion(key_id, keyring.ids[0], _lacking(living, key_id), len(living))
    if found.lacking and not force:
        raise _not_held(found.lacking, key_id, "promoted")
    if found.was != key_id:
        details = {"instead_of": found.was, "workers": len(living), "without_it": [h.name for h in found.lacking]}
        AuditLogRepository(session).add("encryption_key.promoted", "encryption_key", key_id, details)
    return found


def _lacking(living: Sequence[Holder], key_id: str) -> list[Holder]:
    return [holder for holder in living if key_id not in (holder.keys or ())]


def _not_held(lacking: Sequence[Holder], key_id: str, what: str) -> Refused:
    names = ", ".join(sorted({holder.name for holder in lacking}))
    return Refused(
        f"the key {key_id} cannot be {what} yet: not held by {names}, who could not open what it seals",
        hint="start these anew with the key in OPS_ENCRYPTION_KEYS; with --force their jobs fail until then",
    )


def retire(
    session: Session, *, key_id: str, tables: Sequence[EncryptedTable], actor: User | None = None
) -> EncryptionKey:
    """Let a key go that nothing is sealed with any more. Raises NotFound, Refused, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "retiring an encryption key")
    repository = EncryptionKeyRepository(session)
    key = repository.lock_(key_id)
    if key is None:
        raise NotFound(f"this database knows no encryption key {key_id}", hint="ops encryption-key list")
    if key.retired_at is not None:
        return key
    primary = get_keyring().primary
    if primary is None or primary.id == key_id:
        raise Refused(f"the key {key_id} seals what is written now", hint="ops encryption-key promote ANOTHER")
    sealing = sorted({holder.name for holder in holders(session) if holder.primary == key_id})
    if sealing:
        raise Refused(
            f"the key {key_id} still seals in {', '.join(sealing)}", hint="start these anew with the promoted key"
        )
    found = {place: counts[key_id] for place, counts in usage(session, tables).items() if key_id in counts}
    if found:
        rows = ", ".join(f"{count} of {table}.{column}" for (table, column), count in found.items())
        raise Refused(f"the key {key_id} is still needed: rows: {rows}", hint="ops encryption-key rotate")
    repository.retire(key)
    looked = [f"{table.name}.{column}" for table in tables for column in table.columns]
    AuditLogRepository(session).add("encryption_key.retired", "encryption_key", key_id, {"not_used_in": looked})
    return key


@dataclass(frozen=True)
class Unopened:
    """A value that could not be sealed anew, and why."""

    table: str
    column: str
    id: str
    key_id: str | None
    reason: str


@dataclass(frozen=True)
class Step:
    """What one transaction of a rotation did. ``held``: rows of the table that others held until the end."""

    table: str
    rows: int = 0
    unopened: tuple[Unopened, ...] = ()
    held: int = 0


@dataclass
class Rotation:
    """Seals everything with the primary key: short transactions, rows that others hold later, those that do not open
    not at all. What is done is done: killed and started again it goes on with the rest, and two at once share it."""

    tables: Sequence[EncryptedTable]
    context: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    batch: int = BATCH
    keyring: Keyring = field(default_factory=get_keyring)

    def prepare(self, session: Session, *, force: bool = False, actor: User | None = None) -> list[Holder]:
        """Answers the workers that seal with another key: what they write meanwhile needs another rotation. Raises
        Refused while a worker does not hold the primary key, NotFound, EncryptionError, PermissionDenied."""
        rights.require(actor, Role.ADMIN, "rotating encryption keys")
        require_here(session, self.tables)
        check_keys(session.connection())
        key_id = self._primary()
        living = holders(session)
        if (lacking := _lacking(living, key_id)) and not (force or self.dry_run):
            raise _not_held(lacking, key_id, "rotated to")
        return [holder for holder in living if holder.primary != key_id]

    def left(self, session: Session) -> int:
        """Rows that are to be sealed anew."""
        key_id = self._primary()
        return sum(table.not_of(session, key_id) for table in self.tables)

    def run(self) -> Iterator[Step]:
        for table in self.tables:
            yield from self._table(table)

    def _table(self, table: EncryptedTable) -> Iterator[Step]:
        known: set[tuple[str, str]] = set()
        for _ in range(TRIES):
            moved, stuck = 0, 0
            for step, unopened_rows in self._pass(table):
                moved, stuck = moved + step.rows, stuck + unopened_rows
                fresh = tuple(each for each in step.unopened if (each.column, each.id) not in known)
                known.update((each.column, each.id) for each in fresh)
                yield replace(step, unopened=fresh)
            if self.dry_run:
                return
            with get_db_session(**self.context) as session:
                held = table.not_of(session, self._primary()) - stuck
            if held <= 0:
                return
            if not moved:
                time.sleep(PAUSE_SECONDS)
        yield Step(table.name, held=held)

    def _pass(self, table: EncryptedTable) -> Iterator[tuple[Step, int]]:
        """Once through the table; each step with the number of rows that keep a value as it was."""
        key_id = self._primary()
        last: tuple[Any, ...] | None = None
        while True:
            with get_db_session(**self.context) as session:
                rows = table.after(session, key_id, last, self.batch, lock=not self.dry_run)
                if not rows:
                    return
                fresh, unopened = _seal_anew(table, rows, self.keyring)
                if not self.dry_run and fresh:
                    table.replace(session, fresh)
                    details = {"table": table.name, "rows": len(fresh), "unopened": len(unopened)}
                    AuditLogRepository(session).add("encryption_key.rotated", "encryption_key", key_id, details)
            last = rows[-1].key
            yield Step(table.name, len(fresh), tuple(unopened)), len({each.id for each in unopened})

    def _primary(self) -> str:
        if self.keyring.primary is None:
            raise EncryptionError("there is no encryption key to rotate to", hint="ops encryption-key new")
        return self.keyring.primary.id


def check(tables: Sequence[EncryptedTable], batch: int = BATCH) -> Iterator[Step]:
    """Open every value, and tell those that do not open; ``rows`` are those that were looked at."""
    keyring = get_keyring()
    for table in tables:
        last: tuple[Any, ...] | None = None
        while True:
            with get_db_session() as session:
                rows = table.after(session, None, last, batch, lock=False)
            if not rows:
                break
            last = rows[-1].key
            yield Step(table.name, len(rows), tuple(_do_not_open(table, rows, keyring)))


def _do_not_open(table: EncryptedTable, rows: Sequence[StoredRow], keyring: Keyring) -> Iterator[Unopened]:
    for row in rows:
        for column, value in row.stored.items():
            try:
                if value is not None:
                    keyring.open(value, table.label(column))
            except DecryptionError as error:
                yield Unopened(table.name, column, row.id, error.key_id, error.reason)


def _seal_anew(
    table: EncryptedTable, rows: Sequence[StoredRow], keyring: Keyring
) -> tuple[list[StoredRow], list[Unopened]]:
    """The rows of which at least one value could be sealed anew, and the values that could not."""
    fresh, unopened = [], []
    for row in rows:
        stored = dict(row.stored)
        for column, value in row.stored.items():
            if value is None or value.startswith(keyring.prefix):
                continue
            label = table.label(column)
            try:
                stored[column] = keyring.seal(keyring.open(value, label), label)
            except DecryptionError as error:
                unopened.append(Unopened(table.name, column, row.id, error.key_id, error.reason))
        if stored != row.stored:
            fresh.append(StoredRow(row.key, stored))
    return fresh, unopened
