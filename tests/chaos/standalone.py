"""A migrated database on servers of its own, for measuring outside of pytest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import Database, pytest_sessionfinish, settings_from
from worker.devstack import Stack
from worker.servers import DATABASE


@contextmanager
def migrated_database() -> Iterator[Database]:
    """Start both servers, migrate; stop and remove them at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ops-measure-"))
    stack = Stack(folder / "stack")
    try:
        stack.start()
        made = Database(DATABASE, stack)
        with settings_from({"DATABASE_URL": made.url, "OPS_DATABASE_OWNER_URL": made.owner_url}):
            from db import migrate

            migrate.upgrade()
            yield made
    finally:
        stack.delete()
        shutil.rmtree(folder, ignore_errors=True)
        pytest_sessionfinish()  # what importing tests.conftest has made
