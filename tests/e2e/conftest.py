"""Platforms for the end-to-end tests: on the shared servers, or on servers of their own that may be killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Database, fresh_database, make_template
from tests.e2e.platform import Platform
from tests.guardian import guarded_stack
from worker import publish
from worker.devstack import Stack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {}).values()
        report.sections += [("platform", each.logs()) for each in used if isinstance(each, Platform)]
    return report


@contextmanager
def running_platform(stack: Stack, database: Database) -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="ops-e2e-"))
    made = Platform(stack, database, folder)
    made.broker.flushall()
    made.call_as("worker.app")
    try:
        yield made
    finally:
        publish._line = None
        made.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def platform(stack: Stack, database: Database) -> Iterator[Platform]:
    """On the shared servers: for tests that kill only what they started."""
    with running_platform(stack, database) as made:
        yield made


@pytest.fixture(scope="session")
def breakable_stack() -> Iterator[tuple[Stack, str]]:
    """Servers that may be killed, and the name of their template database."""
    with guarded_stack("ops-e2e-") as servers:
        yield servers, make_template(servers)


@pytest.fixture
def breakable(breakable_stack: tuple[Stack, str]) -> Iterator[Platform]:
    """On servers of its own: whatever the test before has killed is started again."""
    servers, template = breakable_stack
    servers.start()
    with fresh_database(servers, template) as database, running_platform(servers, database) as made:
        yield made
        servers.start()
