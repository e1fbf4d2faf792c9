"""The database's roles: `ops_owner` migrates, `ops_app` runs the platform, `ops_read` reads reports.

The platform runs as a role that cannot change its own audit trail, its functions or its tables. Rights on what the
migrations make are given by the function ``ops_grant``; here is what only an administrator of the server can do.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

from db.connection import IDLE_SECONDS, LOCK_SECONDS
from db.errors import PermissionDenied
from db.migrate import ROLES, explain, grant_rights, take_turn
from db.settings import get_settings, libpq_conninfo

OWNER = "ops_owner"
#: What a role's sessions start with, also behind a pooler, which refuses to be asked for it.
DEFAULTS = {
    "ops_app": {
        "statement_timeout": "60s",
        "lock_timeout": f"{LOCK_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
    },
    "ops_read": {
        "default_transaction_read_only": "on",
        "statement_timeout": "5min",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
    },
}

_MAKE = """DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) THEN CREATE ROLE {role} LOGIN; END IF;
END $$"""
#: What a migration by another role has made; owning a table is more than any right on it. Without a migration, what
#: has such a name is somebody else's.
_HAND_OVER = """DO $$ DECLARE thing record; BEGIN
  IF to_regclass({version_table}) IS NULL THEN RETURN; END IF;
  FOR thing IN SELECT c.oid::regclass AS name, c.relkind FROM pg_class c
    WHERE c.relnamespace = {schema}::regnamespace AND c.relkind IN ('r', 'p', 'S')
      AND pg_get_userbyid(c.relowner) <> {owner}
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
      AND (c.relname = ANY ({tables}) OR c.relname ~ '^(ops_|audit_logs_|check_results_)') LOOP
    EXECUTE format('ALTER %s %s OWNER TO %I', CASE thing.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
      thing.name, {owner});
  END LOOP;
  FOR thing IN SELECT p.oid::regprocedure AS name FROM pg_proc p
    WHERE p.pronamespace = {schema}::regnamespace AND p.proname ~ '^ops_' AND pg_get_userbyid(p.proowner) <> {owner}
  LOOP
    EXECUTE format('ALTER FUNCTION %s OWNER TO %I', thing.name, {owner});
  END LOOP;
END $$"""


@dataclass(frozen=True)
class Made:
    """What was made: the roles that are new, and where passwords were wanted, the URLs that carry them."""

    new: Sequence[str]
    urls: dict[str, str]


def statements(database: str) -> list[sql.Composed]:
    """What an administrator of the server has to run, once; running it again changes nothing."""
    schema = get_settings().database_schema
    names = sql.Identifier(schema), sql.Identifier(OWNER), sql.Identifier(database)
    made = [sql.SQL(_MAKE).format(name=sql.Literal(role), role=sql.Identifier(role)) for role in (OWNER, *ROLES)]
    made.append(sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(*names[:2]))
    made.append(sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(*names[:2]))
    made.append(sql.SQL("REVOKE CREATE ON SCHEMA {} FROM PUBLIC").format(names[0]))
    made.append(
        sql.SQL(_HAND_OVER).format(
            schema=sql.Literal(schema),
            owner=sql.Literal(OWNER),
            tables=sql.Literal(_table_names()),
            version_table=sql.Literal(f"{schema}.ops_alembic_version"),
        )
    )
    for role, defaults in DEFAULTS.items():
        for name, value in defaults.items():
            setting = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}")
            made.append(setting.format(sql.Identifier(role), names[2], sql.Identifier(name), sql.Literal(value)))
    return made


def script() -> str:
    """The same as text, for whoever may and we may not."""
    database = make_url(get_settings().require_admin_url()).database or "postgres"
    return "".join(f"{statement.as_string(None)};\n" for statement in statements(database))


def make(*, passwords: bool = False, url_passwords: bool = False) -> Made:
    """Make the roles and give them their rights, as the role of OPS_DATABASE_ADMIN_URL, else of OPS_DATABASE_OWNER_URL.

    ``passwords`` gives each new role a random one; ``url_passwords`` gives the roles that DATABASE_URL and
    OPS_DATABASE_OWNER_URL name those that stand there, whenever they were made. The server sees only the SCRAM
    verifier. Raises PermissionDenied when this role may not make roles, DatabaseUnavailable.
    """
    url = get_settings().require_admin_url()
    try:
        with psycopg.connect(libpq_conninfo(url)) as connection:
            known = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles").fetchall()}
            new = [role for role in (OWNER, *ROLES) if role not in known]
            take_turn(connection)
            for statement in statements(connection.info.dbname):
                connection.execute(statement)
            if url_passwords:
                _set_passwords_of_urls(connection)
            urls = {role: _with_password(connection, role, url) for role in new} if passwords else {}
            grant_rights(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise PermissionDenied(
            f"making roles needs an administrator of the server: {str(error).splitlines()[0]}",
            hint="ops db roles --sql | psql ..., as one",
        ) from None
    except psycopg.Error as error:
        raise explain(error) from None
    return Made(new, urls)


def _with_password(connection: psycopg.Connection, role: str, url: str) -> str:
    password = secrets.token_urlsafe(24)
    _set_password(connection, role, password)
    changed = make_url(url).set(drivername="postgresql", username=role, password=password)
    return changed.render_as_string(hide_password=False)


def _set_passwords_of_urls(connection: psycopg.Connection) -> None:
    settings = get_settings()
    for each in (settings.require_database_url(), settings.require_database_url(owner=True)):
        named = make_url(each)
        # Never that of the administrator, or of somebody else's role.
        if named.username in (OWNER, *ROLES) and named.password:
            _set_password(connection, str(named.username), str(named.password))


def _set_password(connection: psycopg.Connection, role: str, password: str) -> None:
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    change = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier.decode()))
    connection.execute(change)


def _table_names() -> list[str]:
    from db.models import Base

    return [table.name for table in Base.metadata.tables.values()]
