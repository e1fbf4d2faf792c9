"""Workers that drain.

Revision: 20261125_0900
"""

from __future__ import annotations

from alembic import op

from migrations import sql

revision = "20261125_0900"
down_revision = "20261123_1500"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql.run("2026-11-25-0900_drain.sql")


def downgrade() -> None:
    op.execute("DROP FUNCTION ops_drain(text[], boolean)")
    op.execute("ALTER TABLE processes DROP COLUMN draining_at -- squawk-ignore ban-drop-column: undoes the upgrade")
