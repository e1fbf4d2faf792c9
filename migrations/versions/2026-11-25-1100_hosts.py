"""Hosts of an infrastructure, and what a deployment did to each.

Revision: 20261125_1100, after 20261125_1000.
"""

from __future__ import annotations

from migrations import sql

revision = "20261125_1100"
down_revision = "20261125_1000"
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql.run("2026-11-25-1100_hosts.sql")
    sql.grant("hosts", "deployment_hosts")


def downgrade() -> None:
    sql.grant("hosts", "deployment_hosts", undo=True)
    sql.run("2026-11-25-1100_hosts_downgrade.sql")
