"""Validate the rules of frozen deployments, which reads and blocks nobody.

Revision: 20261125_1401, after 20261125_1400.
"""

from __future__ import annotations

from alembic import op

revision = "20261125_1401"
down_revision = "20261125_1400"
branch_labels = None
depends_on = None

RULES = {
    "ck_deployments_frozen": "(frozen IS NULL) = (digest IS NULL)",
    "ck_deployments_release_digest": "release_digest ~ '^(sha256|git):[0-9a-f]{40,64}$'",
    "ck_deployments_rollback_deployment_id": "rollback_deployment_id <> id",
}


def upgrade() -> None:
    for rule in RULES:
        op.execute(f"ALTER TABLE deployments VALIDATE CONSTRAINT {rule}")


def downgrade() -> None:
    for rule, says in RULES.items():
        op.execute(f"ALTER TABLE deployments DROP CONSTRAINT {rule}")
        op.execute(f"ALTER TABLE deployments ADD CONSTRAINT {rule} CHECK ({says}) NOT VALID")
