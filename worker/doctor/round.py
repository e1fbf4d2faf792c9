"""One round over all checks. A check that fails itself is a finding, and ends no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sqlalchemy import Connection, Engine, create_engine, pool
from sqlalchemy.exc import OperationalError

from db.connection import session_arguments
from db.errors import OpsError
from db.settings import get_settings
from worker.doctor import configuration, database, packages, platform
from worker.doctor.finding import Finding, critical, note

Check = Callable[[], Iterable[Finding]]


def examine(*, offline: bool = False) -> Iterator[Finding]:
    """Everything that was found, check by check. ``offline`` leaves out what asks the internet."""
    for check in configuration.CHECKS:
        yield from _attempt(check.__name__, check)
    yield from _examine_database()
    for check in platform.CHECKS:
        yield from _attempt(check.__name__, check)
    if not offline:
        yield from _attempt("vulnerabilities", packages.vulnerabilities)


def _examine_database() -> Iterator[Finding]:
    try:
        url = get_settings().require_database_url()
        arguments = {"connect_timeout": 5, "application_name": "ops doctor"} | session_arguments()
        engine = create_engine(url, poolclass=pool.NullPool, hide_parameters=True, connect_args=arguments)
        engine.connect().close()
        for check in database.CHECKS:
            yield from _attempt(check.__name__, _on(engine, check))
    except OperationalError as error:
        line = str(error.orig).strip().splitlines()[0]
        yield critical("database", f"it does not answer: {line}", "start it, or correct DATABASE_URL")
    except OpsError as error:
        yield critical("database", str(error), error.hint or "set DATABASE_URL")


def _on(engine: Engine, check: Callable[[Connection], Iterable[Finding]]) -> Check:
    """The check in a transaction of its own, which leaves nothing."""

    def run() -> Iterator[Finding]:
        with engine.connect() as connection:
            yield from check(connection)

    return run


def _attempt(name: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - what could not be looked at is told, and the round goes on
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield note(name.replace("_", " "), f"could not be looked at: {first[:200]}")
