"""Checks: their settings, where they stand, their results and what these add up to.

Revision: 20261125_1000.
"""

from __future__ import annotations

from alembic import op

from migrations import sql

revision = "20261125_1000"
down_revision = "20261125_0900"
branch_labels = None
depends_on = None

TABLES = ("monitoring_checks", "check_states", "check_results", "check_rollups", "check_intervals")
HIDDEN = ("config", "ping_token")


def upgrade() -> None:
    sql.run("2026-11-25-1000_checks.sql")
    sql.grant(*TABLES, hidden=HIDDEN)


def downgrade() -> None:
    sql.grant(*TABLES, hidden=HIDDEN, undo=True)
    op.execute("DROP FUNCTION ops_checks_make_partitions(bigint), ops_checks_drop_partitions(bigint)")
    op.execute(f"DROP TABLE {', '.join(reversed(TABLES))}")
