"""Migrations agree with the models, on a server of their own: one head, up, check, down, up, the same again."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = tempfile.mkdtemp(prefix="ops-drift-")
os.environ["OPS_DATA_DIR"] = HERE
for name in ("DATABASE_URL", "OPS_DATABASE_OWNER_URL"):
    os.environ.pop(name, None)

from worker.devstack import Stack  # noqa: E402


def main() -> int:
    stack = Stack(Path(HERE) / "stack")
    try:
        stack.start()
        os.environ["DATABASE_URL"] = stack.database_url()
        os.environ["OPS_DATABASE_OWNER_URL"] = stack.database_url(role="ops_owner")
        from db import migrate
        from db.preflight import head_revision

        head = head_revision()
        migrate.upgrade()
        first = migrate.drift()
        migrate.downgrade("base")
        migrate.upgrade()
        found = first or migrate.drift()
        print(found or f"models and migrations agree at {head}; up, down and up again")
        return 1 if found else 0
    finally:
        stack.delete()
        Path(HERE).rmdir()


if __name__ == "__main__":
    sys.exit(main())
