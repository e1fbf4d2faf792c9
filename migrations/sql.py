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
        op.execute(
            "DO $do$ DECLARE was text := pg_get_functiondef('ops_grant(name, text)'::regprocedure); BEGIN "
            f"IF strpos(was, $t${before}$t$) = 0 THEN RAISE EXCEPTION 'ops_grant is not as it was made'; END IF; "
            f"EXECUTE replace(was, $t${before}$t$, $t${after}$t$); END $do$"
        )
