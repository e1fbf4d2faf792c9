"""Does a PostgreSQL server answer, and a query say what it should?"""

from __future__ import annotations

import time
from typing import Any

import psycopg

from db.probes import PostgresCheck, ProbePlan, Seen
from tasks.probes.net import Down, Net
from tasks.probes.texts import found_slow, quoted


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: PostgresCheck = plan.config
    (info, *_) = await net.resolve(config.host, config.port)
    start = time.monotonic()
    try:
        # The address that was judged is the one that is connected to; the name is for the certificate.
        async with await psycopg.AsyncConnection.connect(**_arguments(plan, config, str(info[4][0]))) as connection:
            value = await _first_value(connection, config) if config.query else None
    except psycopg.OperationalError as error:
        raise Down(_why(error), time.monotonic() - start) from None
    except psycopg.Error as error:
        raise Down(f"the query fails: {_state(error)}", time.monotonic() - start) from None
    seconds = time.monotonic() - start
    if config.expect is not None and value != config.expect:
        said = "nothing" if value is None else quoted(value)
        raise Down(f"the query answers {said}", seconds)
    return found_slow(seconds, config.degraded_seconds)


def _arguments(plan: ProbePlan, config: PostgresCheck, address: str) -> dict[str, Any]:
    """Every way in which libpq would find another server or password by itself is closed, and so is each in which it
    would say who this worker is: by a certificate in its home or environment, or by a ticket of Kerberos."""
    # Older ones take a ticket where the server asks for it.
    no_ticket = {"require_auth": "!gss,!sspi"} if psycopg.pq.version() >= 160000 else {}
    return no_ticket | {
        "host": config.host, "hostaddr": address, "port": config.port, "dbname": config.database, "user": config.user,
        "password": plan.secrets.get("password", ""), "passfile": "/dev/null", "sslmode": config.sslmode,
        "sslcert": "/dev/null/none", "gssencmode": "disable",
        "sslrootcert": "system" if config.sslmode == "verify-full" else "",
        "connect_timeout": max(2, int(plan.timeout_seconds) + 1), "application_name": "ai-manage-ops check",
        "options": f"-c default_transaction_read_only=on -c statement_timeout={int(plan.timeout_seconds * 1000)}",
    }  # fmt: skip


async def _first_value(connection: psycopg.AsyncConnection, config: PostgresCheck) -> str | None:
    assert config.query is not None
    await connection.set_read_only(True)
    async with connection.cursor() as cursor:
        # A settings change in the query itself could lift neither: it is one statement in a read-only transaction.
        await cursor.execute(config.query.encode(), prepare=True)
        row = await cursor.fetchone() if cursor.description else None
    return None if not row or row[0] is None else str(row[0])[:500]


def _why(error: psycopg.OperationalError) -> str:
    """Without what the server quotes."""
    if error.sqlstate is None:
        text = str(error).lower()
        for sign, said in (
            ("refused", "connection refused"), ("password", "the password is not accepted"),
            ("certificate", "its certificate is not trusted"), ("ssl", "no secure connection"),
            ("timeout", "no answer in time"), ("no pg_hba", "it does not let this host in"),
        ):  # fmt: skip
            if sign in text:
                return said
        return "no connection"
    return f"it refuses: {_state(error)}"


def _state(error: psycopg.Error) -> str:
    """The error's class and code: its text may hold data."""
    return f"{type(error).__name__} ({error.sqlstate})"
