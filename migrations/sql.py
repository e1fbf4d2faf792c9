"""Runs the SQL files that stand beside a migration, online and offline alike."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import context, op

VERSIONS = Path(__file__).parent / "versions"


def run(name: str) -> None:
    """Execute a file of statements, as written: nothing in it is a parameter or a placeholder."""
    statements = (VERSIONS / name).read_text("utf-8")
    if context.is_offline_mode():
        op.execute(sa.text(re.sub(r"(?<!:):(?=\w)", r"\\:", statements)))
        return
    driver_connection = op.get_bind().connection.driver_connection
    assert driver_connection is not None
    with driver_connection.cursor() as cursor:
        cursor.execute(statements)
