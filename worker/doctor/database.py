"""The database as the platform's role sees it: transport, rights, schema, bounds, accounts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, RowMapping, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from db import passwords, preflight
from db.connection import conninfo
from db.errors import OpsError
from db.models import User
from db.seals import seal_keys
from db.services import sealing
from db.settings import get_settings
from db.states import Role
from worker.doctor.configuration import is_weak
from worker.doctor.finding import Finding, critical, note, ok, warning
from worker.doctor.platform import is_loopback

#: What must be there already of each partitioned table: how its partitions end, what they are, and how many.
PARTITIONS_AHEAD = {"audit_logs": ("YYYY_MM", "months", 2), "check_results": ("YYYY_MM_DD", "days", 2)}
#: A tick seals every ten seconds; a transaction that stays open for some minutes holds it up as well.
SEAL_AGE = timedelta(minutes=10)
CLOCK_SECONDS = 1.0
#: The share of the server's connections in use from which on it is time to act.
POOL_SHARE = 0.8
#: What people leave on the accounts that everybody knows to be there.
DEFAULT_PASSWORDS = ("admin", "password", "changeme", "opsopsopsops", "administrator", "changemenow")
ACCOUNTS_TRIED = 20


def transport(connection: Connection) -> Iterator[Finding]:
    """TLS, and checked to the certificate, wherever the network is not this machine's own."""
    parameters = conninfo_to_dict(conninfo())
    host = str(parameters.get("host") or "")
    row = connection.execute(text("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).mappings().one()
    if host.startswith("/") or not host:
        yield ok("database transport", "a socket of this machine")
    elif row["ssl"] and parameters.get("sslmode") == "verify-full":
        yield ok("database transport", f"{row['version']}, and the certificate is checked")
    elif row["ssl"]:
        yield warning(
            "database transport", f"{row['version']}, but anybody may pose as the server",
            "add sslmode=verify-full&sslrootcert=... to DATABASE_URL",
        )  # fmt: skip
    elif is_loopback(host):
        yield ok("database transport", "on this machine's loopback")
    elif get_settings().is_private(host):
        yield note(
            "database transport", f"{host} is reached in plain text, on a network declared private (OPS_PRIVATE_HOSTS)",
            "let nothing else join that network; across machines turn on ssl, and sslmode=verify-full in DATABASE_URL",
        )  # fmt: skip
    else:
        yield critical(
            "database transport", f"{host} is reached in plain text",
            "turn on ssl in PostgreSQL, and add sslmode=verify-full to DATABASE_URL",
        )  # fmt: skip
    password = make_url(get_settings().require_database_url()).password
    if password is not None and is_weak(str(password), 12):
        yield critical(
            "database password", "it is easy to guess", "ops db roles --passwords, or ALTER ROLE ... PASSWORD"
        )


def who_gets_in(connection: Connection) -> Iterator[Finding]:
    """pg_hba.conf, where this role may read it."""
    try:
        rules = connection.execute(text("SELECT * FROM pg_hba_file_rules ORDER BY line_number")).mappings().all()
    except ProgrammingError:
        yield note("pg_hba.conf", "this role may not read it", "ops doctor as an administrator, or look by hand")
        return
    bad = [finding for rule in rules for finding in _rule(rule)]
    yield from bad or [ok("pg_hba.conf", f"{len(rules)} rules, none too wide")]


def _rule(rule: RowMapping) -> Iterator[Finding]:
    where = f"line {rule['line_number']}"
    method, kind = rule["auth_method"], rule["type"]
    if rule["error"]:
        yield warning("pg_hba.conf", f"{where}: {rule['error']}", "correct it")
    if method == "trust":
        yield critical("pg_hba.conf", f"{where}: whoever reaches it gets in", "scram-sha-256 instead of trust")
    elif method in ("password", "md5"):
        yield warning("pg_hba.conf", f"{where}: passwords by {method}", "scram-sha-256")
    everywhere = rule["address"] in ("0.0.0.0", "::", "all") and rule["netmask"] in ("0.0.0.0", "::", None)  # noqa: S104
    if everywhere and method != "reject":
        yield warning("pg_hba.conf", f"{where}: open to every address", "name the networks of workers and people")
    if kind in ("host", "hostnossl") and not is_loopback(rule["address"]) and method != "reject":
        yield warning("pg_hba.conf", f"{where}: plain text is let in", "hostssl instead of host")


def rights(connection: Connection) -> Iterator[Finding]:
    """The platform's role can neither change the trail nor the tables."""
    schema = get_settings().database_schema
    row = connection.execute(
        text(
            """SELECT r.rolsuper AS superuser, r.rolcreaterole AS roles, r.rolbypassrls AS bypass,
              has_schema_privilege(:schema, 'CREATE') AS makes_tables,
              (SELECT string_agg(p, ', ') FROM unnest('{UPDATE,DELETE,TRUNCATE}'::text[]) p
                WHERE has_table_privilege(:trail, p)) AS trail,
              pg_has_role((SELECT relowner FROM pg_class WHERE oid = CAST(:trail AS regclass)), 'MEMBER') AS owns
            FROM pg_roles r WHERE rolname = current_user"""
        ),
        {"schema": schema, "trail": f"{schema}.audit_logs"},
    ).mappings().one()  # fmt: skip
    may = []
    if row["superuser"]:
        may.append("everything (it is a superuser)")
    elif row["owns"]:
        may.append("change the audit trail and switch its triggers off (it owns the tables)")
    else:
        may += ["make roles"] if row["roles"] else []
        may += ["make tables of its own in our schema"] if row["makes_tables"] else []
        may += [f"{row['trail']} on the audit trail"] if row["trail"] else []
    if may:
        yield critical(
            "database role", f"the platform's role may {', '.join(may)}", "ops db roles, and DATABASE_URL names ops_app"
        )
    else:
        yield ok("database role", "it may work, and change neither the audit trail nor the tables")


def schema(connection: Connection) -> Iterator[Finding]:
    """Migrations, durability, and keys that open what is stored."""
    for name, check in (
        ("migrations", preflight.check_schema),
        ("durability", preflight.check_durability),
        ("encryption keys", preflight.check_keys),
    ):
        try:
            check(connection)
        except OpsError as error:
            yield critical(name, str(error), error.hint or "see the message")
        else:
            yield ok(name, "as they must be" if name != "durability" else "a commit is a promise")


def partitions(connection: Connection) -> Iterator[Finding]:
    """The trail's months and the days of check results are made ahead; without one, nothing could be written."""
    query = text(
        """SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = CAST(:parent AS regclass) AND right(c.relname, length(CAST(:ends AS text))) COLLATE "C"
          > to_char(now() AT TIME ZONE 'UTC', CAST(:ends AS text))"""
    )
    for table, (ends, spans, wanted) in PARTITIONS_AHEAD.items():
        parent = f"{get_settings().database_schema}.{table}"
        ahead = connection.scalar(query, {"parent": parent, "ends": ends}) or 0
        name = f"{table.partition('_')[0]} partitions"
        if ahead < wanted:
            yield critical(name, f"only {ahead} {spans} ahead", "ops db upgrade; and let a beat run")
        else:
            yield ok(name, f"{ahead} {spans} ahead")


def seals(connection: Connection) -> Iterator[Finding]:
    """The trail is sealed, lately, and a copy of the seals is kept where the database's owner cannot cut it off."""
    settings, keys = get_settings(), seal_keys()
    if not keys:
        yield warning(
            "audit seals", "the audit trail is not sealed: a change to it would not be found",
            "ops audit new-key, and set OPS_AUDIT_SEAL_KEY for the workers",
        )  # fmt: skip
        return
    state = sealing.state(Session(connection), keys)
    number = state.newest.number if state.newest else 0
    waiting = datetime.now(UTC) - (state.oldest_unsealed_at or datetime.now(UTC))
    if waiting > SEAL_AGE:
        yield warning(
            "audit seals", f"{state.unsealed} entries wait, the oldest for {waiting.total_seconds() // 60:.0f} minutes",
            "ops audit seal, and see that a beat runs, that workers have OPS_AUDIT_SEAL_KEY, and that no transaction is"
            " left open",
        )  # fmt: skip
    else:
        yield ok("audit seals", f"sealed up to seal {number}; {state.unsealed} entries wait")
    if settings.audit_seal_file is None:
        yield note(
            "audit seals outside", "no file is named: an end that is cut off with its seals would not be found",
            "set OPS_AUDIT_SEAL_FILE to a file that the database's owner cannot write",
        )  # fmt: skip


def connections(connection: Connection) -> Iterator[Finding]:
    """How many of the server's connections are in use, and whether statements are bounded."""
    row = connection.execute(
        text(
            """SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
              current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most,
              current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
              current_setting('idle_in_transaction_session_timeout') AS idle"""
        )
    ).mappings().one()  # fmt: skip
    says = f"{row['used']} of {row['most']} in use"
    if row["used"] > row["most"] * POOL_SHARE:
        yield warning("connections", says, "raise max_connections, or put PgBouncer in front (OPS_DATABASE_POOLER)")
    else:
        yield ok("connections", says)
    unbounded = [name for name in ("statement", "lock", "idle") if row[name] == "0"]
    if unbounded:
        yield warning("timeouts", f"none for: {', '.join(unbounded)}", "ops db roles sets them on the role")
    else:
        yield ok("timeouts", f"statements {row['statement']}, locks {row['lock']}, idle transactions {row['idle']}")


def clock(connection: Connection) -> Iterator[Finding]:
    """This machine's clock and the database's: leases are counted by each on its own, but people compare times."""
    before = time.time()
    theirs = connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())"))
    skew = abs(float(theirs or 0) - (before + time.time()) / 2)
    if skew > CLOCK_SECONDS:
        yield warning("clock", f"{skew:.1f} s away from the database's", "run an NTP client on both")
    else:
        yield ok("clock", "within a second of the database's")


def accounts(connection: Connection) -> Iterator[Finding]:
    """No admin has a password that everybody tries first."""
    query = select(User.username, User.hashed_password).where(
        User.role == Role.ADMIN, User.is_active, User.hashed_password.is_not(None)
    )
    admins = connection.execute(query.order_by(User.id).limit(ACCOUNTS_TRIED)).all()
    weak = [
        name
        for name, hashed in admins
        if any(passwords.check(word, hashed)[0] for word in dict.fromkeys((*DEFAULT_PASSWORDS, name, name * 2)))
    ]
    for name in weak:
        yield critical("accounts", f"{name} is an admin with a default password", f"ops user passwd {name}")
    if not weak:
        yield ok("accounts", f"none of {len(admins)} admins with a password has a default one")


def statements(connection: Connection) -> Iterator[Finding]:
    """pg_stat_statements shows which queries are slow."""
    if connection.scalar(text("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'")):
        yield ok("query statistics", "pg_stat_statements is there")
    else:
        yield note(
            "query statistics", "pg_stat_statements is not installed here",
            "shared_preload_libraries = 'pg_stat_statements', then CREATE EXTENSION pg_stat_statements",
        )  # fmt: skip


CHECKS = (transport, who_gets_in, rights, schema, partitions, seals, connections, clock, accounts, statements)
