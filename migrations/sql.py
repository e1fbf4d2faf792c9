"""What migrations are made of beside Alembic's operations: files of SQL, and indexes that are built concurrently."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import context, op

from db.migrate import TIMEOUTS

VERSIONS = Path(__file__).parent / "versions"


def run(name: str) -> None:
    """Execute a file of statements, as written: nothing in it is a parameter or a placeholder."""
    statements = (VERSIONS / name).read_text("utf-8")
    if context.is_offline_mode():
        op.execute(sa.text(re.sub(r"(?<!:):(?=\w)", r"\\:", statements)))
        return
    driver_connection = op.get_bind().connection.driver_connection
    assert driver_connection is not None
    with driver_connection.cursor() as cursor:
        cursor.execute(statements)


def concurrently(*statements: str) -> None:
    """CREATE, DROP or REINDEX INDEX CONCURRENTLY, each by itself, since no transaction can hold it.

    What this migration did before is committed. A try that failed leaves an invalid index, which the next one must
    remove first (DROP INDEX CONCURRENTLY IF EXISTS). It waits for transactions that began before it, and nobody waits
    for it: no timeout holds here.
    """
    for statement in statements:
        if "CONCURRENTLY" not in statement:
            raise ValueError(f"this is nothing that is done concurrently: {statement[:80]}")
    with op.get_context().autocommit_block():
        op.execute("SET statement_timeout = 0")
        op.execute("SET lock_timeout = 0")
        for statement in statements:
            op.execute(statement)
    for statement in TIMEOUTS:
        op.execute(statement)


def runs_from(revision: str) -> None:
    """Say that only releases which have this migration can work on the database from now on: in one that takes away
    what older ones use. Releases that lack it are refused when they start; those that run are not stopped."""
    op.execute(
        "CREATE OR REPLACE FUNCTION ops_runs_from() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE "
        f"AS $$ SELECT '{revision}' $$"
    )


def on_each_partition(table: str, name: str, column: str, how: str) -> None:
    """CREATE INDEX of a table that is partitioned, concurrently on each partition; new ones have it from the start.

    ``how``: what comes after the table's name. A try that failed is taken up where it stopped. The partitions' own
    indexes are named as PostgreSQL does it.
    """
    if context.is_offline_mode():  # who runs the statements by hand sees the partitions, and may do it one by one
        op.execute(f"-- squawk-ignore require-concurrent-index-creation\nCREATE INDEX {name} ON {table} {how}")
        return
    op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY {table} {how}")
    parts = op.get_bind().scalars(
        sa.text(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:table AS regclass) ORDER BY 1"
        ),
        {"table": table},
    )
    for part in parts.all():
        own = f"{part.rpartition('.')[2]}_{column}_idx"
        concurrently(
            f"DROP INDEX CONCURRENTLY IF EXISTS {own}", f"CREATE INDEX CONCURRENTLY {own} ON {part} {how}"
        )  # fmt: skip
        op.execute(f"ALTER INDEX {name} ATTACH PARTITION {own}")


def grant(*tables: str, hidden: tuple[str, ...] = (), undo: bool = False) -> None:
    """Name tables to `ops_grant`, whose rights the roles then get; ``hidden``: columns that `read` never sees.

    The function is edited, not written anew: migrations that were written beside each other each add what is theirs.
    ``undo`` is for the downgrade, which runs in the opposite order.
    """
    for anchor, names in (("'login_limits',", tables), ("'lease_token', 'done_token')", hidden)):
        if not names:
            continue
        wider = "".join(f"'{name}', " for name in names) + anchor
        before, after = (wider, anchor) if undo else (anchor, wider)
        edit("ops_grant(name, text)", before, after)


def edit(function: str, before: str, after: str) -> None:
    """Change this text in a function, named with its arguments' types, wherever it stands. It must be there."""
    op.execute(
        f"DO $do$ DECLARE was text := pg_get_functiondef('{function}'::regprocedure); BEGIN "
        f"IF strpos(was, $t${before}$t$) = 0 THEN RAISE EXCEPTION '{function} is not as it was made'; END IF; "
        f"EXECUTE replace(was, $t${before}$t$, $t${after}$t$); END $do$"
    )
