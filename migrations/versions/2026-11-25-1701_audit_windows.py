"""An index by which a search looks at the newest entries first: a few bytes for each stretch of the trail.

Revision: 20261125_1701
"""

from __future__ import annotations

from alembic import op

from migrations import sql

revision = "20261125_1701"
down_revision = "20261125_1700"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql.on_each_partition("audit_logs", "ix_audit_logs_id", "id", "USING brin (id) WITH (autosummarize = on)")


def downgrade() -> None:
    op.execute("DROP INDEX ix_audit_logs_id")
