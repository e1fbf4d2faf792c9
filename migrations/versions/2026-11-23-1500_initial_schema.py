"""Tables, the audit trail and the job ledger.

Revision: 20261123_1500, the first.
"""

from __future__ import annotations

from migrations import sql

revision = "20261123_1500"
down_revision = None
branch_labels = None
depends_on = None

PARTS = ("tables", "audit", "keys", "pause", "ledger", "ledger_enqueue", "ledger_attempt", "ledger_upkeep", "grants")


def upgrade() -> None:
    for part in PARTS:
        sql.run(f"2026-11-23-1500_{part}.sql")


def downgrade() -> None:
    sql.run("2026-11-23-1500_downgrade.sql")
