"""The ledger's statements, each one autocommit call on a connection of its own.

Used where every round trip counts and no ORM belongs: workers, their supervisors, the relay. The protocol is in the
functions of the database (``migrations/versions/*_ledger*.sql``); here stands only how to call them, and that a call
whose answer was lost may be repeated with the same token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

#: How long one statement, one wait for a row, one silent socket may take.
SESSION = "-c statement_timeout=5000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=5000"
CONNECT = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
#: What a server says that may say otherwise a moment later: away, out of something, read-only for now (a failover, a
#: provider's brake on a full disk), a plan that a migration has made stale.
PASSING = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, psycopg.NotSupportedError)
#: The lease beyond which a second look may act; `ops_rescue`'s default says the same.
GRACE = timedelta(seconds=4)


@dataclass(frozen=True, slots=True)
class Bell:
    """A doorbell to publish: whose, for which task, into which queue."""

    id: UUID
    task: str
    queue: str
    priority: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim. Everything after ``bells`` is set when ``verdict`` is ``run``."""

    verdict: str
    attempt: int
    bells: tuple[Bell, ...] = ()
    lock_key: str | None = None
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    fence: int = 0
    lease_seconds: float = 0.0
    timeout_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A running job that a process of this host holds."""

    token: UUID
    holders: tuple[str, ...]


class Ledger:
    """One connection to the ledger. Opens itself, and again after an outage; not for two threads at once.

    ``patience``: called before a failed call is repeated, with the error and the number of tries so far; returns the
    seconds to wait, or None to give up and raise the error. Without it a call is tried twice.
    """

    def __init__(
        self, conninfo: str, schema: str = "public", *, application_name: str = "ops ledger", pooled: bool = False
    ) -> None:
        self._conninfo = conninfo
        # A pooler in transaction mode refuses start-up options and knows no prepared statements.
        self._session: dict[str, Any] = {"prepare_threshold": None} if pooled else {"options": SESSION}
        self._schema = schema
        self._application_name = application_name
        self._connection: psycopg.Connection[dict[str, Any]] | None = None
        self._pid = os.getpid()

    def close(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = None

    def claim(
        self,
        job_id: UUID,
        task: str,
        token: UUID,
        *,
        worker: str,
        host: str,
        holders: Sequence[str],
        patience: Patience | None = None,
    ) -> Claim:
        """Try to take a job. Repeating with the same token gives the same verdict."""
        row = self._row("ops_claim", (job_id, task, token, worker, host, list(holders)), patience)
        return Claim(
            verdict=row["verdict"],
            attempt=row["attempt"],
            bells=_bells(row["bells"]),
            lock_key=row["lock_key"],
            args=row["args"] or (),
            kwargs=row["kwargs"],
            context=row["context"],
            fence=row["fence"] or 0,
            lease_seconds=row["lease_seconds"] or 0.0,
            timeout_seconds=row["timeout_seconds"] or 0,
        )

    def begin(
        self, job_id: UUID, attempt: int, token: UUID, holders: Sequence[str], patience: Patience | None = None
    ) -> str:
        """The last write before the effect: ``go``, ``cancelled`` or ``lost``."""
        return str(self._value("ops_begin", (job_id, attempt, token, list(holders)), patience))

    def heartbeat(self, job_id: UUID, attempt: int, token: UUID) -> str:
        """Renew the lease: ``go``, ``cancelled`` (still held, its end is asked for) or ``lost``. Tried once."""
        return str(self._value("ops_heartbeat", (job_id, attempt, token), _never_again))

    def finish(
        self,
        job_id: UUID,
        attempt: int,
        token: UUID,
        outcome: str,
        *,
        error: str | None = None,
        result: Any = None,
        retry_in: timedelta | None = None,
        patience: Patience | None = None,
    ) -> tuple[str, tuple[Bell, ...]]:
        """Record the end of an attempt. Answers the job's state, or ``late`` when it was not ours any more."""
        document = None if result is None else Jsonb(result)
        row = self._row("ops_finish", (job_id, attempt, token, outcome, clean(error), document, retry_in), patience)
        return row["state"], _bells(row["bells"])

    def cancel(self, job_id: UUID, reason: str | None = None) -> tuple[str | None, tuple[Bell, ...]]:
        """Cancel a queued job, or ask the holder of a running one. None: it had ended."""
        row = self._row("ops_cancel", (job_id, reason))
        return row["state"], _bells(row["bells"])

    def rescue(
        self, grace: timedelta = GRACE, dead: Iterable[UUID] = ()
    ) -> tuple[list[dict[str, Any]], tuple[Bell, ...]]:
        """Look at what may have died, expire what is overdue. Answers what was moved, and bells to ring."""
        rows = self._rows("ops_rescue", (grace, list(dead)))
        return rows, tuple(bell for row in rows for bell in _bells(row.pop("bells")))

    def due_queues(self) -> list[str]:
        """The queues in which something is due for a ring."""
        return [row["ops_due_queues"] for row in self._rows("ops_due_queues", ())]

    def relay(self, queue: str, room: int) -> list[Bell]:
        """Take up to ``room`` bells that are due; they are committed when this returns: publish them now."""
        return [Bell(**row) for row in self._rows("ops_relay", (queue, room))]

    def held_here(self, host: str) -> list[Held]:
        """The running jobs held by processes of this host."""
        rows = self._query(
            "SELECT lease_token, holders FROM {schema}.jobs WHERE state = 'running' AND worker_host = %s", (host,)
        )
        return [Held(row["lease_token"], tuple(row["holders"] or ())) for row in rows]

    def say_alive(self, key: str, kind: str, name: str, host: str, pid: int, info: dict[str, Any]) -> None:
        """Tell that a process lives, and forget those unseen for a day."""
        self._query(
            """WITH gone AS (DELETE FROM {schema}.processes WHERE seen_at < now() - interval '1 day')
            INSERT INTO {schema}.processes (id, kind, name, host, pid, info, seen_at)
            VALUES (%s, %s, %s, %s, %s, %s, clock_timestamp())
            ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, info = excluded.info RETURNING id""",
            (key, kind, name, host, pid, Jsonb(info)),
        )

    def is_to_drain(self, key: str) -> bool:
        """Whether somebody has asked this process to take nothing new."""
        rows = self._query("SELECT draining_at FROM {schema}.processes WHERE id = %s", (key,))
        return bool(rows) and rows[0]["draining_at"] is not None

    def say_gone(self, key: str) -> None:
        """A process ends in order."""
        self._query("DELETE FROM {schema}.processes WHERE id = %s RETURNING id", (key,))

    def is_alive(self, kind: str, seconds: float = 20) -> bool:
        """Whether a process of a kind was seen lately."""
        rows = self._query(
            """SELECT EXISTS (SELECT FROM {schema}.processes
            WHERE kind = %s AND seen_at > clock_timestamp() - make_interval(secs => %s)) AS alive""",
            (kind, seconds),
        )
        return bool(rows[0]["alive"])

    def audit(
        self, action: str, resource_type: str, resource_id: str | None, details: dict[str, Any], actor: str
    ) -> None:
        """Append an audit entry as a worker."""
        context = {"actor_type": "worker", "actor": actor}
        self._query(
            "SELECT {schema}.ops_audit(%s, %s, %s, NULL, %s, %s)",
            (action, resource_type, resource_id, Jsonb(details), Jsonb(context)),
        )

    def _value(self, function: str, arguments: tuple[Any, ...], patience: Patience | None = None) -> Any:
        return next(iter(self._row(function, arguments, patience).values()))

    def _row(self, function: str, arguments: tuple[Any, ...], patience: Patience | None = None) -> dict[str, Any]:
        return self._rows(function, arguments, patience)[0]

    def _rows(
        self, function: str, arguments: tuple[Any, ...], patience: Patience | None = None
    ) -> list[dict[str, Any]]:
        marks = ", ".join(["%s"] * len(arguments))
        return self._query(f"SELECT * FROM {{schema}}.{function}({marks})", arguments, patience)  # noqa: S608

    def _query(
        self, statement: str, arguments: tuple[Any, ...], patience: Patience | None = None
    ) -> list[dict[str, Any]]:
        tries = 0
        while True:
            try:
                return self._connect().execute(_compose(statement, self._schema), arguments).fetchall()
            except PASSING as error:
                # Also a statement or lock timeout: the server has rolled it back, and repeating is harmless.
                self._drop()
                tries += 1
                wait = (patience or _once_more)(error, tries)
                if wait is None:
                    raise
                time.sleep(wait)

    def _connect(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None or self._connection.closed or self._pid != os.getpid():
            self._pid = os.getpid()
            self._connection = psycopg.connect(
                self._conninfo,
                autocommit=True,
                row_factory=dict_row,
                application_name=self._application_name,
                **self._session,
                **CONNECT,  # type: ignore[arg-type]
            )
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


Patience = Callable[[Exception, int], float | None]


def until(stop: Callable[[], bool]) -> Patience:
    """Repeat, at most once a second, until ``stop`` answers True."""
    return lambda _error, tries: None if stop() else min(0.1 * 2 ** min(tries, 4), 1.0)


def _once_more(_error: Exception, tries: int) -> float | None:
    return 0.05 if tries == 1 else None


def _never_again(_error: Exception, _tries: int) -> float | None:
    return None


@lru_cache(maxsize=64)
def _compose(statement: str, schema: str) -> sql.Composed:
    return sql.SQL(statement).format(schema=sql.Identifier(schema))


def _bells(rows: Sequence[dict[str, Any]]) -> tuple[Bell, ...]:
    return tuple(Bell(UUID(row["id"]), row["task"], row["queue"], row["priority"]) for row in rows)


def clean(text: str | None) -> str | None:
    """Text that PostgreSQL can hold: no NUL, no lone surrogate."""
    if text is None:
        return None
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=1)
def host_key() -> str:
    """Names this kernel's process table: two processes with the same key can see whether the other lives."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:8]}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{os.uname().nodename}/-"


def process_key(pid: int) -> str:
    """A process that is told apart from a later one with the same number: ``pid:start time in ticks``."""
    return f"{pid}:{_start_ticks(pid) or 0}"


def is_gone(key: str) -> bool:
    """True when the process of this key has ended (a zombie has), or its number belongs to another now."""
    pid, _, started = key.partition(":")
    ticks = _start_ticks(int(pid))
    if ticks is None:
        return Path("/proc/self").exists() and not _is_hidden(int(pid))
    return started != "0" and int(started) != ticks


def _is_hidden(pid: int) -> bool:
    """True when the process is there and another user's, and `/proc` shows only one's own (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _start_ticks(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
