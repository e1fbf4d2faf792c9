"""Counters rolled up from the audit trail, and an index by which a queue's depth and age are found.

Revision: 20261125_1300
"""

from __future__ import annotations

from migrations import sql

revision = "20261125_1300"
down_revision = "20261125_1200"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql.run("2026-11-25-1300_counters.sql")
    sql.grant("counters", "counter_position")
    sql.concurrently(
        "DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_due",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_jobs_due ON jobs (queue, run_at) WHERE state = 'queued'",
    )


def downgrade() -> None:
    sql.grant("counters", "counter_position", undo=True)
    sql.run("2026-11-25-1300_counters_downgrade.sql")
