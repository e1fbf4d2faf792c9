"""The database says which releases can work on it: one that is older than its newest migration may start.

Revision: 20261125_1702
"""

from __future__ import annotations

from alembic import op

from migrations import sql

revision = "20261125_1702"
down_revision = "20261125_1701"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql.runs_from(revision)
    op.execute("REVOKE ALL ON FUNCTION ops_runs_from() FROM PUBLIC")


def downgrade() -> None:
    op.execute("DROP FUNCTION ops_runs_from()")
