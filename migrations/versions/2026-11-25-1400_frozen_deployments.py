"""Freeze what a deployment is to do, and let a rollback say what it replaces.

Revision: 20261125_1400, after 20261125_1300.
"""

from __future__ import annotations

from migrations import sql

revision = "20261125_1400"
down_revision = "20261125_1300"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql.run("2026-11-25-1400_frozen_deployments.sql")
    sql.grant(hidden=("frozen",))  # commands and addresses: nothing for reports


def downgrade() -> None:
    sql.grant(hidden=("frozen",), undo=True)
    sql.run("2026-11-25-1400_frozen_deployments_downgrade.sql")
