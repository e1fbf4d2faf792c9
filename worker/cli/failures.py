"""What libraries raise, as errors of ours: one line and what to do."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError, OperationalError

from db.connection import is_outage
from db.errors import (
    Conflict,
    DatabaseUnavailable,
    InvalidInput,
    OpsError,
    PermissionDenied,
    SchemaOutOfDate,
    Unavailable,
)
from db.settings import find_data_dir, origin

#: What to do where the stack of `ops up` does not answer.
START_IT = "ops up --detach, if it does not run: the settings are those of its folder"


def explain(error: BaseException) -> OpsError | None:
    """The error of ours that this is, or None."""
    if isinstance(error, OperationalError) and is_outage(error):
        return DatabaseUnavailable(f"the database does not answer: {_first(error.orig)}", hint="ops status")
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error):
        return _of_postgres(cause)
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename else ""
        return Unavailable(f"{error.strerror}{name}")
    return None


def what_to_do(error: OpsError) -> str | None:
    """The hint of an error; of a database that does not answer, and is that of `ops up`, that it may not run."""
    if isinstance(error, DatabaseUnavailable) and error.hint in (None, "ops status") and is_embedded():
        return START_IT
    return error.hint


def is_embedded() -> bool:
    """Whether the database is the one that `ops up` starts."""
    data_dir = find_data_dir()
    return data_dir is not None and origin("DATABASE_URL") == str(data_dir / "env")


def _of_postgres(error: psycopg.Error) -> OpsError:
    state = error.sqlstate or ""
    first = _first(error)
    if not state or state[:2] == "08" or state[:3] == "57P":
        return DatabaseUnavailable(f"the database does not answer: {first}", hint="ops status")
    if state in ("42P01", "42883", "42703", "3F000"):
        return SchemaOutOfDate(hint="ops db upgrade")
    if state == "42501":
        return PermissionDenied(f"the database role lacks a right: {first}")
    if state in ("53100", "53200", "53300"):
        return Unavailable(f"the database is out of resources: {first}")
    if state in ("57014", "55P03"):
        return Conflict(f"the database took too long: {first}")
    if state[:2] == "22":
        return InvalidInput(f"the database cannot hold this value: {first}")
    return Conflict(f"the database refused: {first}", hint=error.diag.message_hint)


def _first(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
