"""Databases for tests: cloned from a template, and cleared between two tests rather than cloned anew.

A clone costs a hundred times what clearing costs. A database whose catalog a test has changed, or which has grown, is
not used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg
from psycopg import sql

from worker.devstack import Stack
from worker.servers import OWNER_ROLE

#: A database that has grown by more than this is not cleared: what is left of deleted rows would slow the next test.
MOST_GROWTH_BYTES = 4 * 1024 * 1024
MOST_USES = 100

_TABLES = """SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^(pg_|information_schema)' ORDER BY 1"""
_COLUMNS = """SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
  WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"""
_SEQUENCES = "SELECT format('%I.%I', schemaname, sequencename), start_value, last_value FROM pg_sequences"
#: What a change of anything but rows changes. A row's xmin is that of its newest version.
_CATALOG = """SELECT md5(string_agg(x, ',' ORDER BY x)) FROM (
  SELECT 'class' || oid || ' ' || xmin || ' ' || relfilenode AS x FROM pg_class WHERE oid >= 16384
  UNION ALL SELECT 'proc' || oid || ' ' || xmin FROM pg_proc WHERE oid >= 16384
  UNION ALL SELECT 'trigger' || oid || ' ' || xmin FROM pg_trigger
  UNION ALL SELECT 'constraint' || oid || ' ' || xmin FROM pg_constraint WHERE oid >= 16384
  UNION ALL SELECT 'default' || oid || ' ' || xmin FROM pg_attrdef
  UNION ALL SELECT 'column' || attrelid || ' ' || attnum || ' ' || xmin FROM pg_attribute
    WHERE attrelid >= 16384 AND attnum > 0
  UNION ALL SELECT 'schema' || oid || ' ' || xmin FROM pg_namespace
  UNION ALL SELECT 'statistics' || starelid || ' ' || staattnum FROM pg_statistic WHERE starelid >= 16384
  UNION ALL SELECT 'setting' || setrole || ' ' || xmin FROM pg_db_role_setting
    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
  UNION ALL SELECT 'database' || coalesce(datacl::text, '') FROM pg_database WHERE datname = current_database()) c"""


@dataclass
class Template:
    """What a migrated database holds, and the clones of it that are free."""

    name: str
    servers: Stack
    catalog: str = ""
    size: int = 0
    clear: sql.Composed = field(default_factory=lambda: sql.SQL("").format())
    #: Rows that are there from the start: the statement that takes them in, and they.
    rows: list[tuple[sql.Composed, bytes]] = field(default_factory=list)
    free: list[str] = field(default_factory=list)
    uses: dict[str, int] = field(default_factory=dict)


_templates: dict[tuple[str, str], Template] = {}


@contextmanager
def clone(servers: Stack, template: str) -> Iterator[str]:
    """A database as the template is; its name. It is another one's afterwards."""
    known = _template(servers, template)
    name = known.free.pop() if known.free else _make(known)
    try:
        yield name
    finally:
        if _clear(known, name):
            known.free.append(name)
        else:
            with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as server:
                server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _template(servers: Stack, name: str) -> Template:
    key = (str(servers.data_dir), name)
    if key not in _templates:
        _templates[key] = _look_at(Template(name, servers))
    return _templates[key]


def _look_at(template: Template) -> Template:
    with psycopg.connect(template.servers.postgres.url(template.name), autocommit=True) as database:
        statements = []
        for (table,) in database.execute(_TABLES).fetchall():
            # As written by the server: quoted, and with its schema where it needs one.
            statements.append(sql.SQL("DELETE FROM ") + sql.SQL(table))
            (columns,) = database.execute(_COLUMNS, [table]).fetchone() or ("",)
            named = sql.SQL(table) + sql.SQL(" (") + sql.SQL(columns) + sql.SQL(")")
            query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(sql.SQL(columns), sql.SQL(table))
            with database.cursor().copy(query) as copy:
                data = b"".join(bytes(part) for part in copy)
            if data:
                template.rows.append((sql.SQL("COPY ") + named + sql.SQL(" FROM STDIN"), data))
        for sequence, start, last in database.execute(_SEQUENCES).fetchall():
            value = sql.SQL("SELECT setval({}, {}, {})").format(
                sql.Literal(sequence), sql.Literal(start if last is None else last), sql.Literal(last is not None)
            )
            statements.append(value)
        template.clear = sql.SQL("; ").join(statements)
    return template


def _make(template: Template) -> str:
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(template.servers.postgres.url("postgres"), autocommit=True) as server:
        server.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                *map(sql.Identifier, (name, template.name, OWNER_ROLE))
            )
        )
    if not template.catalog:
        with psycopg.connect(template.servers.postgres.url(name), autocommit=True) as database:
            template.catalog, template.size = _state(database)
    template.uses[name] = 0
    return name


def _state(database: psycopg.Connection) -> tuple[str, int]:
    (catalog,) = database.execute(_CATALOG).fetchone() or ("",)
    (size,) = database.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    return catalog, size


def _clear(template: Template, name: str) -> bool:
    """Make it as it was; False: that cannot be done."""
    template.uses[name] += 1
    if template.uses[name] >= MOST_USES:
        return False
    with suppress(psycopg.Error):
        url = template.servers.postgres.url(name)
        with psycopg.connect(url, autocommit=True, options="-c session_replication_role=replica") as database:
            database.execute(
                """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
            )
            catalog, size = _state(database)
            if catalog != template.catalog or size > template.size + MOST_GROWTH_BYTES:
                return False
            with database.transaction():
                database.execute("SET LOCAL lock_timeout = '2s'")
                database.execute(template.clear)
                for statement, data in template.rows:
                    with database.cursor().copy(statement) as copy:
                        copy.write(data)
            return True
    return False
