"""The trail as the sealer and the verifier read it: line by line, in the order of (xid, id), and its seals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from psycopg import sql
from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from db import seals
from db.models import AuditLog, AuditSeal
from db.seals import Entry, Position, Seal

#: What an entry's line depends on. `pg_catalog` alone is on the path: nothing of ours can stand in for an operator.
CANONICAL = """SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL client_encoding = 'UTF8';
SET LOCAL search_path = pg_catalog, pg_temp"""
_COLUMNS = [AuditSeal.__table__.c[field.name] for field in fields(Seal)]
#: The transaction that wrote a row, without wrapping: the row holds its lower half.
_WRITER = """(WITH n AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric AS next)
  SELECT next - mod(next, 4294967296) + xmin::text::numeric
    - CASE WHEN xmin::text::numeric > mod(next, 4294967296) THEN 4294967296 ELSE 0 END FROM n)"""


@dataclass(frozen=True, slots=True)
class Server:
    """The database system this is, and the transaction id it gives next."""

    cluster: int
    next_xid: int


@dataclass(frozen=True, slots=True)
class Unsealed:
    """Entries after the newest seal."""

    count: int
    oldest_at: datetime | None


class AuditSealRepository:
    def __init__(self, session: Session) -> None:
        self.session = session
        self._schema = AuditLog.__table__.schema or "public"

    def begin(self, *, snapshot: bool) -> None:
        """Begin the session's transaction: every statement by itself, or all of them on one snapshot, read only."""
        if snapshot:
            self.session.connection(
                execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            )
        else:
            # Whatever a database's default: the watermark must be newer than the newest seal that is read.
            self.session.connection(execution_options={"isolation_level": "READ COMMITTED"})
        for statement in CANONICAL.split(";"):
            self.session.execute(text(statement))

    def lock(self) -> bool:
        """True when nobody else seals until the end of this transaction."""
        name = f"ops_audit_seal:{self._schema}"
        return bool(self.session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(name, 0)))))

    def server(self) -> Server:
        row = self.session.execute(
            text(
                "SELECT system_identifier, pg_snapshot_xmax(pg_current_snapshot())::text FROM pg_control_system()",
            )
        ).one()
        return Server(int(row[0]), int(row[1]))

    def add(self, seal: Seal) -> None:
        values = {field.name: getattr(seal, field.name) for field in fields(seal)}
        self.session.execute(insert(AuditSeal), values)

    def get(self, number: int) -> Seal | None:
        row = self.session.execute(select(*_COLUMNS).where(AuditSeal.number == number)).one_or_none()
        return Seal(**row._mapping) if row is not None else None

    def newest_number(self) -> int:
        return int(self.session.scalar(select(func.coalesce(func.max(AuditSeal.number), 0))) or 0)

    def list_after(self, number: int, limit: int) -> list[Seal]:
        """Seals in the order of their numbers."""
        query = select(*_COLUMNS).where(AuditSeal.number > number).order_by(AuditSeal.number).limit(limit)
        return [Seal(**row._mapping) for row in self.session.execute(query)]

    def newest_first(self) -> Iterator[Seal]:
        number = self.newest_number() + 1
        while True:
            query = select(*_COLUMNS).where(AuditSeal.number < number).order_by(AuditSeal.number.desc()).limit(10)
            found = [Seal(**row._mapping) for row in self.session.execute(query)]
            yield from found
            if not found:
                return
            number = found[-1].number

    def number_since(self, moment: datetime) -> int:
        """The first seal made at or after a time; the one after the newest where there is none."""
        query = select(func.min(AuditSeal.number)).where(AuditSeal.sealed_at >= moment)
        return int(self.session.scalar(query) or self.newest_number() + 1)

    def epoch_starts(self) -> list[int]:
        """The numbers of the seals whose epoch is not that of the one before."""
        before = func.lag(AuditSeal.epoch).over(order_by=AuditSeal.number)
        marked = select(AuditSeal.number, (AuditSeal.epoch.is_distinct_from(before)).label("starts")).subquery()
        query = select(marked.c.number).where(marked.c.starts).order_by(marked.c.number)
        return list(self.session.scalars(query))

    def sealed_count(self, after: int) -> int:
        """How many entries the seals from this number on say they hold."""
        return int(self.session.scalar(select(func.sum(AuditSeal.count)).where(AuditSeal.number > after)) or 0)

    def highest_of_elsewhere(self) -> int:
        """The highest id of an entry whose transaction this cluster has not come to yet; 0 when there is none."""
        query = text(
            f"SELECT max(id) FROM {self._schema}.audit_logs"  # noqa: S608 - a name that settings have checked
            " WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())"
        )
        return int(self.session.scalar(query) or 0)

    def entries(
        self,
        *,
        after: Position,
        until: Position | None = None,
        floor: int = 0,
        ceiling: int | None = None,
        settled: bool = False,
        limit: int | None = None,
        form: int = seals.FORM,
    ) -> Iterator[Entry]:
        """Entries after one position up to another, with ids above the floor up to the ceiling, as a stream.

        ``settled``: only those of transactions before which none is open, in whose order none can appear any more.
        Needs :meth:`begin`.
        """
        where: list[sql.Composable] = [sql.SQL("(xid, id) > ({}::xid8, {})").format(str(after.xid), after.id)]
        if until is not None:
            where.append(sql.SQL("(xid, id) <= ({}::xid8, {})").format(str(until.xid), until.id))
        if floor:
            where.append(sql.SQL("id > {}").format(floor))
        if ceiling is not None:
            where.append(sql.SQL("id <= {}").format(ceiling))
        if settled:
            where.append(sql.SQL("xid < pg_snapshot_xmin(pg_current_snapshot())"))
        query = sql.SQL("COPY (SELECT {} FROM {} WHERE {} ORDER BY xid, id {}) TO STDOUT").format(
            sql.SQL(", ").join(map(sql.Identifier, seals.FORMS[form])),
            sql.Identifier(self._schema, "audit_logs"),
            sql.SQL(" AND ").join(where),
            sql.SQL("LIMIT {}").format(limit) if limit is not None else sql.SQL(""),
        )
        with self._cursor().copy(query) as copy:
            for line in copy:
                yield seals.read(bytes(line).removesuffix(b"\n"))

    def unsealed(
        self, after: Position, floor: int = 0, ceiling: int | None = None, *, limit: int | None = None
    ) -> Unsealed:
        """How many entries wait for a seal, and since when; of the first so many only, where a limit is given."""
        row = self.session.execute(
            text(
                f"SELECT count(*), min(at) FROM (SELECT at FROM {self._schema}.audit_logs"  # noqa: S608
                " WHERE (xid, id) > (CAST(:xid AS xid8), :id) AND id > :floor AND id <= :ceiling"
                f"{' ORDER BY xid, id LIMIT :limit' if limit is not None else ''}) waiting"
            ),
            {"xid": str(after.xid), "id": after.id, "floor": floor, "ceiling": ceiling or 2**63 - 1}
            | ({"limit": limit} if limit is not None else {}),
        ).one()
        return Unsealed(int(row[0]), row[1])

    def impossible(self, after: Position, floor: int, limit: int) -> Sequence[tuple[int, int, int, int]]:
        """Entries without a seal that cannot be what they say: id, claimed transaction, the row's own, the next one.

        A row's own is the claimed one, or a later one where it was written inside a savepoint.
        """
        rows = self.session.execute(
            text(
                f"SELECT id, xid::text, writer, next FROM (SELECT id, xid, {_WRITER} AS writer,"  # noqa: S608
                f" pg_snapshot_xmax(pg_current_snapshot())::text::numeric AS next FROM {self._schema}.audit_logs"
                " WHERE (xid, id) > (CAST(:xid AS xid8), :id) AND id > :floor) e"
                " WHERE xid::text::numeric >= next OR writer < xid::text::numeric ORDER BY id LIMIT :limit"
            ),
            {"xid": str(after.xid), "id": after.id, "floor": floor, "limit": limit},
        )
        return [(int(row[0]), int(row[1]), int(row[2]), int(row[3])) for row in rows]

    def positions(self, ids: Sequence[int]) -> dict[int, int]:
        """The claimed transaction of each of these entries that is there."""
        rows = self.session.execute(
            text(f"SELECT id, xid::text FROM {self._schema}.audit_logs WHERE id = ANY(:ids)"),  # noqa: S608
            {"ids": list(ids)},
        )
        return {int(id_): int(xid) for id_, xid in rows}

    def months(self) -> set[str]:
        """The months, ``YYYY-MM``, that have a partition."""
        rows = self.session.scalars(
            text(
                "SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
                " WHERE inhparent = CAST(:trail AS regclass)"
            ),
            {"trail": f'"{self._schema}".audit_logs'},
        )
        return {name.removeprefix("audit_logs_").replace("_", "-") for name in rows}

    def _cursor(self) -> Any:
        return self.session.connection().connection.cursor()
