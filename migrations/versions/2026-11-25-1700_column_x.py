"""A table under audit may have a column of any name, also the one by which the trail's functions call a row.

Revision: 20261125_1700
"""

from __future__ import annotations

from migrations import sql

revision = "20261125_1700"
down_revision = "20261125_1600"
branch_labels = None
depends_on = None

#: The second is the row also where a column is called x.
_COLUMN_OR_ROW, _ROW = "to_jsonb(x)", "to_jsonb(x.*)"


def upgrade() -> None:
    sql.edit("ops_audit_rows()", _COLUMN_OR_ROW, _ROW)


def downgrade() -> None:
    sql.edit("ops_audit_rows()", _ROW, _COLUMN_OR_ROW)
