"""One compose stack for all tests here, and a report of what was done to it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compose.stack import Stack
from tests.containers import engine

REPORT: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("OPS_COMPOSE_TEST"):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="takes minutes: make compose-test"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if REPORT:
        terminalreporter.section("the compose stack")
        for line in REPORT:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Up, from a copy of the repository and `make env` to healthy; removed at the end, also after a failure."""
    folder = Path(tempfile.mkdtemp(prefix="ops-compose-"))
    with engine(compose=True):
        made = Stack(folder)
        try:
            made.remove_leftovers()
            made.copy()
            here = Path.cwd()
            os.chdir(folder)
            try:
                from worker.cli import envfile

                envfile.write(folder)
            finally:
                os.chdir(here)
            made.let_watch()
            made.compose("build")
            made.up()
            made.note_rest()
            made.register()
            yield made
        finally:
            made.end()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    made = getattr(item, "funcargs", {}).get("stack")
    if report.failed and made is not None:
        report.sections.append(("compose logs", made.compose("logs", "--tail", "40", check=False)[-12000:]))
    return report
