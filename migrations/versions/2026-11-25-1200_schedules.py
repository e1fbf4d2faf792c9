"""Add schedules and what became of each of their times.

Revision: 20261125_1200
"""

from __future__ import annotations

from alembic import op

from migrations import sql

revision = "20261125_1200"
down_revision = "20261125_1100"
branch_labels = None
depends_on = None

TABLES = ("schedules", "schedule_runs")


def upgrade() -> None:
    sql.run("2026-11-25-1200_schedules.sql")
    sql.grant(*TABLES)


def downgrade() -> None:
    sql.grant(*TABLES, undo=True)
    op.drop_table("schedule_runs")
    op.drop_table("schedules")
