"""A migrated database on servers of its own, for measuring outside of pytest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import Database, pytest_sessionfinish, settings_from
from tests.guardian import guarded_stack
from worker.servers import DATABASE


@contextmanager
def migrated_database() -> Iterator[Database]:
    """Start both servers, migrate; stop and remove them at the end."""
    try:
        with guarded_stack("ops-measure-") as stack:
            made = Database(DATABASE, stack)
            with settings_from({"DATABASE_URL": made.url, "OPS_DATABASE_OWNER_URL": made.owner_url}):
                from db import migrate

                migrate.upgrade()
                yield made
    finally:
        pytest_sessionfinish()  # what importing tests.conftest has made
