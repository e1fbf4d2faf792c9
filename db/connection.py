"""Engines, sessions and transactions: the only place that begins, commits or rolls back."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, TextClause, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, UOWTransaction, sessionmaker
from sqlalchemy.pool import QueuePool

from db.errors import DatabaseUnavailable, InvalidInput
from db.ledger import CONNECT, Ledger, clean
from db.settings import get_settings, libpq_conninfo
from db.states import ActorType

_CONTEXT = "ops_context"
_APPLIED = "ops_context_applied"

#: How long a statement of a session waits for a lock, and a transaction for its next statement.
LOCK_SECONDS = 10
IDLE_SECONDS = 60

#: The audit context of what runs now, e.g. the one a job carries; sessions opened here start with it.
current_context: ContextVar[dict[str, Any] | None] = ContextVar("ops_audit_context", default=None)

_lock = threading.Lock()
_engine: Engine | None = None
_pool_size: tuple[int, int] | None = None


def get_engine() -> Engine:
    """The process's engine: a pool of 10 + 20 connections that are checked before use.

    Raises SettingsError when no database is named.
    """
    global _engine
    if _engine is None:
        with _lock:
            if _engine is None:
                _engine = _make_engine()
    return _engine


def _make_engine() -> Engine:
    return create_engine(get_settings().require_database_url(), **engine_options())


def engine_options() -> dict[str, Any]:
    """What an engine of this process is made with."""
    settings = get_settings()
    size, overflow = _pool_size or (settings.database_pool_size, settings.database_max_overflow)
    return {
        "pool_size": size,
        "max_overflow": overflow,
        "pool_timeout": settings.database_pool_timeout_seconds,
        "pool_pre_ping": True,
        "pool_recycle": 1800,
        "echo": settings.database_debug,
        # Also under DATABASE_DEBUG: parameters carry what must not be printed.
        "hide_parameters": True,
        # A host that is gone without a word is noticed within seconds; the system's own defaults take hours.
        "connect_args": CONNECT | {"connect_timeout": 5, "application_name": "ops"} | session_arguments(),
    }


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One pool at one moment. ``limit`` is how many connections it may open at once; sessions wait beyond it."""

    in_use: int
    idle: int
    limit: int


def pool_stats(engine: Engine | None = None) -> PoolStats:
    """The pool of an engine (an async one's ``sync_engine``), or of this process's own; opens no connection."""
    pool = (engine or get_engine()).pool
    assert isinstance(pool, QueuePool)
    return PoolStats(pool.checkedout(), pool.checkedin(), pool.size() + pool._max_overflow)


def session_arguments() -> dict[str, Any]:
    """What every connection of an engine asks for: bounds on statements, waits and idle transactions.

    A pooler in transaction mode hands one server connection to many clients: it refuses start-up options (the role's
    own settings hold there, see ``ops db roles``) and knows no prepared statements.
    """
    settings = get_settings()
    if settings.database_pooler == "transaction":
        return {"prepare_threshold": None}
    theirs = conninfo_to_dict(conninfo()).get("options") or ""
    ours = f"-c statement_timeout={settings.statement_seconds}s -c lock_timeout={LOCK_SECONDS}s"
    return {"options": f"{ours} -c idle_in_transaction_session_timeout={IDLE_SECONDS}s {theirs}".strip()}


def after_fork() -> None:
    """In a forked child: leave the parent's connections alone and keep few of our own.

    Closing them here would end the parent's sessions; using them mixes two processes' answers.
    """
    global _engine, _pool_size
    _pool_size = (2, 3)
    if _engine is not None:
        _engine.dispose(close=False)
        _engine = None


def dispose() -> None:
    """Close this process's pooled connections."""
    global _engine
    if _engine is not None:
        _engine.dispose()
        _engine = None


@contextmanager
def get_db_session(*, read_only: bool = False, **context: Any) -> Iterator[Session]:
    """A session that commits on success and rolls back on error.

    ``read_only`` lets the database refuse every write, for reports. Other keywords are the audit context of everything
    written in it, as for :func:`audit_context`. Raises DatabaseUnavailable when the database cannot be reached.
    """
    engine = get_engine()
    # In the BEGIN itself: no statement more.
    session = _session_factory()(bind=engine.execution_options(postgresql_readonly=True) if read_only else engine)
    start_context(session, context)
    with outages(), session:
        yield session
        session.commit()


@contextmanager
def beside(session: Session) -> Iterator[Session]:
    """A transaction beside the session's own, on another connection: what is written in it stays, whatever becomes of
    the session's. Keep it short, and touch no row that the session may have locked: each would wait for the other.
    """
    other = _session_factory()(bind=session.get_bind().engine)
    if _CONTEXT in session.info:
        other.info[_CONTEXT] = dict(session.info[_CONTEXT])
    with outages(), other:
        yield other
        other.commit()


@contextmanager
def outages() -> Iterator[None]:
    """A database that cannot be reached is DatabaseUnavailable, in one line."""
    try:
        yield
    except OperationalError as error:
        if is_outage(error):
            line = _first_line(error)
            hint = "OPS_DATABASE_POOLER=transaction" if "unsupported startup parameter" in line else None
            raise DatabaseUnavailable(f"the database does not answer: {line}", hint=hint) from error
        raise
    except PoolTimeoutError as error:
        raise DatabaseUnavailable(
            "all connections of this process are in use, and none came free in time",
            hint="OPS_DATABASE_POOL_SIZE and OPS_DATABASE_MAX_OVERFLOW say how many there are",
        ) from error


@lru_cache(maxsize=1)
def _session_factory() -> sessionmaker[Session]:
    return sessionmaker(expire_on_commit=False)


def start_context(session: Session, context: dict[str, Any]) -> None:
    """What a new session starts with: what is given, else what runs now says."""
    if context:
        audit_context(session, **context)
    elif (inherited := current_context.get()) is not None:
        session.info[_CONTEXT] = dict(inherited)


def context_of(session: Session) -> dict[str, Any]:
    """What was said of who acts in this session, by the names of the audit trail's columns."""
    return dict(session.info.get(_CONTEXT) or {})


def audit_context(
    session: Session,
    *,
    actor: str | None = None,
    actor_id: int | None = None,
    actor_type: ActorType | str | None = None,
    ip: str | None = None,
    user_agent: str | None = None,
    request_id: str | None = None,
    task_id: UUID | str | None = None,
    action: str | None = None,
) -> None:
    """Say who acts, for every audit entry this session's transactions leave.

    ``actor`` is a name to show; ``actor_id`` a user's id; ``task_id`` a job's. What is given adds to what was said
    before; what a client said of itself is cut to a sane length. Raises InvalidInput for an address or a job's id that
    is none.
    """
    given = {
        "actor": _text(actor, 200),
        "actor_id": actor_id,
        "actor_type": ActorType(actor_type).value if actor_type else None,
        "ip_address": _address(ip) if ip else None,
        "user_agent": _text(user_agent, 500),
        "request_id": _text(request_id, 200),
        "task_id": _job_id(task_id) if task_id else None,
        "action": _text(action, 200),
    }
    known = session.info.get(_CONTEXT) or {"actor": "system", "actor_type": "system", "client": client_name()}
    known = known | {name: value for name, value in given.items() if value is not None}
    if actor is not None and actor_type is None:
        known["actor_type"] = ActorType.USER.value
    session.info[_CONTEXT] = known
    session.info.pop(_APPLIED, None)


def _text(said: object, length: int) -> str | None:
    """What a client said, so that it cannot make the write fail that it is recorded with."""
    return clean(str(said)[:length]) if said else None


def _address(ip: object) -> str:
    try:
        return str(ip_address(str(ip).partition("%")[0]))  # a zone means something on its own host only
    except ValueError:
        raise InvalidInput(f"{str(ip)[:60]!r} is not an IP address") from None


def _job_id(task_id: UUID | str) -> str:
    try:
        return str(UUID(str(task_id)))
    except ValueError:
        raise InvalidInput(f"{task_id!r} is not the id of a job") from None


def apply_context(session: Session) -> None:
    """Set the context for the running transaction, once. Done by itself before the session writes; needed before a
    function is called that does. A session of which nothing was said acts as ``system``."""
    # By savepoint, since rolling one back takes along what was set in it; what was set around it stays.
    transaction = session.get_nested_transaction() or session.get_transaction() or session.begin()
    around: SessionTransaction | None = transaction
    while around is not None:
        if session.info.get(_APPLIED) is around:
            return
        around = around.parent
    if _CONTEXT not in session.info:
        audit_context(session)
    session.info[_APPLIED] = transaction
    session.connection().execute(
        text("SELECT set_config('ops.context', :context, true)"),
        {"context": json.dumps(session.info[_CONTEXT])},
    )


@contextmanager
def savepoint(session: Session) -> Iterator[None]:
    """A savepoint: what is raised undoes what was written in it, and the session stays usable."""
    if _CONTEXT in session.info:
        apply_context(session)  # around it, so that what comes later need not say it again
    with session.begin_nested():
        yield


@lru_cache(maxsize=1)
def client_name() -> str:
    """Which OS user on which host says so; recorded beside the claimed actor. The kernel's user: what the environment
    calls itself is a claim, too."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def open_ledger(application_name: str) -> Ledger:
    """A connection of its own to the ledger, for the database of the settings. Opens itself at its first call."""
    settings = get_settings()
    pooled = settings.database_pooler == "transaction"
    return Ledger(conninfo(), settings.database_schema, application_name=application_name, pooled=pooled)


def conninfo() -> str:
    """The database's address for a plain psycopg connection."""
    return libpq_conninfo(get_settings().require_database_url())


def is_outage(error: OperationalError | psycopg.OperationalError) -> bool:
    """True when the server went away or was never there; false when it answered with an error of its own."""
    cause = error.orig if isinstance(error, OperationalError) else error
    state = getattr(cause, "sqlstate", None)
    return state is None or state[:2] == "08" or state[:3] == "57P"


def _first_line(error: OperationalError) -> str:
    return str(error.orig).strip().splitlines()[0] if error.orig else "no connection"


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, _context: UOWTransaction, _instances: Any) -> None:
    if _CONTEXT in session.info:
        apply_context(session)


@event.listens_for(Session, "do_orm_execute")
def _before_bulk(state: ORMExecuteState) -> None:
    if _CONTEXT not in state.session.info:
        return
    by_hand = isinstance(state.statement, TextClause) and _WRITES.search(state.statement.text)
    if by_hand or state.is_insert or state.is_update or state.is_delete:
        apply_context(state.session)


_WRITES = re.compile(r"\b(insert|update|delete|merge|truncate|call|do)\b", re.IGNORECASE)
