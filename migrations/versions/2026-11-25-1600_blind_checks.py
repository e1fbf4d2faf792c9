"""An index by which the alert tick finds the checks that can see nothing, without reading the standing of every one.

Revision: 20261125_1600
"""

from __future__ import annotations

from migrations import sql

revision = "20261125_1600"
down_revision = "20261125_1500"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql.concurrently(
        "DROP INDEX CONCURRENTLY IF EXISTS ix_check_states_blind_at",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_check_states_blind_at ON check_states (blind_at)"
        " WHERE blind_at IS NOT NULL",
    )


def downgrade() -> None:
    sql.concurrently("DROP INDEX CONCURRENTLY IF EXISTS ix_check_states_blind_at")
