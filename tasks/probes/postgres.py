"""Does a PostgreSQL server answer, and a query say what it should?"""

from __future__ import annotations

import time

from db.probes import PostgresCheck, ProbePlan, Seen
from tasks.probes.net import Down, Net, tls_context
from tasks.probes.pgwire import Refused, Wire, wants_tls
from tasks.probes.texts import found_slow, quoted

_WRONG_PASSWORD = "28P01"  # noqa: S105 - the code of an error


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: PostgresCheck = plan.config
    start = time.monotonic()
    value = await _ask(plan, config, net, start)
    seconds = time.monotonic() - start
    if config.expect is not None and value != config.expect:
        said = "nothing" if value is None else quoted(value)
        raise Down(f"the query answers {said}", seconds)
    return found_slow(seconds, config.degraded_seconds)


async def _ask(plan: ProbePlan, config: PostgresCheck, net: Net, start: float) -> str | None:
    is_verified = config.sslmode == "verify-full"
    tls = None if config.sslmode == "disable" else tls_context(is_verified)
    reader, writer = await net.connect(config.host, config.port, tls, before=wants_tls if tls else None)
    try:
        if config.sslmode in ("require", "verify-full") and writer.get_extra_info("ssl_object") is None:
            raise Down("no secure connection", time.monotonic() - start)
        wire = Wire(reader, writer)
        try:
            await wire.start(_settings(plan, config), plan.secrets.get("password"), is_verified=is_verified)
        except Refused as error:
            said = (
                "the password is not accepted" if error.sqlstate == _WRONG_PASSWORD else f"it refuses: {_named(error)}"
            )
            raise Down(said, time.monotonic() - start) from None
        try:
            value = await wire.first_value(config.query) if config.query else None
        except Refused as error:
            raise Down(f"the query fails: {_named(error)}", time.monotonic() - start) from None
        wire.end()
        return value
    finally:
        writer.transport.abort()


def _settings(plan: ProbePlan, config: PostgresCheck) -> dict[str, str]:
    # A change of settings in the query itself could lift neither: it is one statement in a read-only transaction.
    options = f"-c default_transaction_read_only=on -c statement_timeout={int(plan.timeout_seconds * 1000)}"
    return {
        "user": config.user, "database": config.database, "client_encoding": "UTF8",
        "application_name": "ai-manage-ops check", "options": options,
    }  # fmt: skip


def _named(error: Refused) -> str:
    """The error's class and code: its text may hold data."""
    from psycopg import errors

    try:
        return f"{errors.lookup(error.sqlstate).__name__} ({error.sqlstate})"
    except KeyError:
        return f"an error of code {quoted(error.sqlstate, 5)}"
