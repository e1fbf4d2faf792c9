"""Migrations agree with the models and undo themselves, on a server of their own.

One head; up, and the models agree; down to nothing, then up again step by step, each step down and up once more: the
catalog must be the same each time, with functions' bodies, triggers, rights and indexes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = tempfile.mkdtemp(prefix="ops-drift-")
os.environ["OPS_DATA_DIR"] = HERE
for name in ("DATABASE_URL", "OPS_DATABASE_OWNER_URL"):
    os.environ.pop(name, None)

import catalog  # noqa: E402
import psycopg  # noqa: E402

from db.errors import OpsError  # noqa: E402
from db.settings import get_settings  # noqa: E402
from worker.devstack import Stack  # noqa: E402


def main() -> int:
    stack = Stack(Path(HERE) / "stack")
    try:
        from db.preflight import head_revision

        head = head_revision()
        stack.start()
        os.environ["DATABASE_URL"] = stack.database_url()
        os.environ["OPS_DATABASE_OWNER_URL"] = stack.database_url(role="ops_owner")
        get_settings.cache_clear()
        failed = False
        for problem in problems(stack.database_url(role="ops_owner")):
            failed = True
            print(problem)
        if not failed:
            print(f"models and migrations agree at {head}; each goes up, down and up again")
    except OpsError as error:
        print(f"{error}; {error.hint}" if error.hint else error)
        return 1
    finally:
        stack.delete()
        Path(HERE).rmdir()
    return 1 if failed else 0


def problems(url: str) -> Iterator[str]:
    """What is not as it should be."""
    from db import migrate

    def look() -> dict[str, str]:
        with psycopg.connect(url, options=f"-c search_path={get_settings().database_schema}") as connection:
            return catalog.objects(connection)

    migrate.upgrade()
    if found := migrate.drift():
        yield found
    whole = look()
    migrate.downgrade("base")
    for step in reversed(migrate.history()):
        below = look()
        migrate.upgrade(step.revision)
        above = look()
        migrate.downgrade(step.after or "base")
        yield from told(f"{step.revision}: its downgrade leaves another database", below, look())
        migrate.upgrade(step.revision)
        yield from told(f"{step.revision}: up, down and up is another database than up", above, look())
    yield from told("all steps one by one make another database than all at once", whole, look())


def told(what: str, before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    if lines := catalog.difference(before, after):
        yield "\n  ".join([what, *lines])


if __name__ == "__main__":
    sys.exit(main())
