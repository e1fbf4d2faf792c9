"""Alerts: timeline, rules, silences, maintenance, channels, routes and notifications.

Revision: 20261125_1500.
"""

from __future__ import annotations

from migrations import sql

revision = "20261125_1500"
down_revision = "20261125_1401"
branch_labels = None
depends_on = None

#: What `ops_grant` is to know: tables, and a column that reports must not show.
TABLES = (
    "alert_events", "alert_rules", "notification_channels", "notification_routes", "notifications", "silences",
    "maintenance_windows",
)  # fmt: skip


def upgrade() -> None:
    sql.run("2026-11-25-1500_alerts.sql")
    sql.grant(*TABLES, hidden=("encrypted_config",))


def downgrade() -> None:
    sql.grant(*TABLES, hidden=("encrypted_config",), undo=True)
    sql.run("2026-11-25-1500_alerts_downgrade.sql")
