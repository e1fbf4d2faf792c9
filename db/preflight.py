"""What must be so before a process may work: a durable database, our schema, the right keys."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

from cryptography.fernet import InvalidToken
from sqlalchemy import Connection, create_engine, pool, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError, ProgrammingError

from db.encryption import MasterKey, get_keyring
from db.errors import DatabaseUnavailable, EncryptionError, Refused, SchemaOutOfDate
from db.models import EncryptionKey
from db.seals import seal_keys
from db.settings import get_settings

CHECK_LABEL = "\0check value"
CHECK_TEXT = "this key opens what it has sealed"
#: How long a process that starts together with its database waits for it.
PATIENCE_SECONDS = 60.0


def check_start(patience: float = PATIENCE_SECONDS) -> None:
    """Raise the first reason why this process must not work: DatabaseUnavailable, SchemaOutOfDate, Refused or
    EncryptionError; SettingsError for a malformed key to seal with."""
    seal_keys()
    engine = create_engine(get_settings().require_database_url(), poolclass=pool.NullPool, hide_parameters=True)
    end = time.monotonic() + patience
    while True:
        try:
            with engine.begin() as connection:
                check_schema(connection)
                check_durability(connection)
                check_keys(connection)
        except OperationalError as error:
            if time.monotonic() > end:
                reason = str(error.orig).strip().splitlines()[0]
                raise DatabaseUnavailable(f"the database does not answer: {reason}") from None
            time.sleep(0.5)
        else:
            return


def check_schema(connection: Connection) -> None:
    """Raises SchemaOutOfDate when migrations are missing here, or those of a later release have taken away what this
    one needs, and Refused when this role has been given no rights."""
    schema = get_settings().database_schema
    try:
        with connection.begin_nested():
            found = connection.scalar(text(f"SELECT version_num FROM {schema}.ops_alembic_version"))  # noqa: S608
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", "") == "42501":
            raise Refused(
                f"this database role has no rights in schema {schema}", hint="ops_grant(role, 'app') gives them"
            ) from None
        found = None
    if found is None:
        raise SchemaOutOfDate(f"the database has no tables of ours in schema {schema}; run: ops db upgrade")
    if found not in _revisions():
        if _runs_from(connection, schema) not in _revisions():
            raise SchemaOutOfDate(f"the database is at migration {found}, too new for this release: upgrade it")
    elif found != head_revision():
        raise SchemaOutOfDate(
            f"the database is at migration {found}, this release needs {head_revision()}; run: ops db upgrade"
        )


def _runs_from(connection: Connection, schema: str) -> str | None:
    """The oldest migration that a release must have to work here. None: the database does not say, or not to us."""
    try:
        with connection.begin_nested():
            found: str | None = connection.scalar(text(f"SELECT {schema}.ops_runs_from()"))
    except ProgrammingError:
        return None
    return found


def head_revision() -> str:
    """The newest migration of this release: the one that no other names as the one before. Raises Refused."""
    revisions = _revisions()
    heads = set(revisions) - set(revisions.values())
    if len(heads) != 1:
        raise Refused(
            f"this release has {len(heads)} newest migrations ({', '.join(sorted(heads))}) and must have one",
            hint="put one after the other by its down_revision",
        )
    return heads.pop()


@lru_cache(maxsize=1)
def _revisions() -> dict[str, str | None]:
    """This release's migrations, each with the one before."""
    import migrations

    revisions: dict[str, str | None] = {}
    for path in (Path(migrations.__file__ or "").parent / "versions").glob("*.py"):
        names: dict[str, str | None] = {}
        for line in path.read_text("utf-8").splitlines():
            name, _, value = line.partition(" = ")
            if name in ("revision", "down_revision"):
                names[name] = None if value == "None" else value.strip("'\"")
        revisions[str(names["revision"])] = names["down_revision"]
    return revisions


def check_durability(connection: Connection) -> None:
    """Raises Refused when a commit is not a promise: then no job could be one."""
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        value = connection.scalar(text("SELECT current_setting(:name)"), {"name": setting})
        if value == "off":
            raise Refused(f"the database runs with {setting} = off and may forget what it has committed")


def check_keys(connection: Connection) -> None:
    """Raises EncryptionError when a key of this process has the id of another key, or would seal with a retired one;
    stores a new key's check value.

    A process without any key passes: the ledger alone does not want one. A retired key may still be held: it opens
    what an old backup has, and is not checked any more.
    """
    keyring = get_keyring()
    rows = connection.execute(select(EncryptionKey.id, EncryptionKey.check_value)).all()
    known = {key_id: value for key_id, value in rows if value is not None}
    retired = {key_id for key_id, value in rows if value is None}
    if keyring.primary is not None and keyring.primary.id in retired:
        raise EncryptionError(
            f"the encryption key {keyring.primary.id} was retired and seals nothing any more; remove it from "
            f"{keyring.primary.source}, or name the current key in OPS_ENCRYPTION_PRIMARY"
        )
    if known and keyring.ids and not set(keyring.ids) & set(known):
        raise EncryptionError(
            f"this database was written with the encryption keys {', '.join(sorted(known))}; this process has "
            f"only {', '.join(keyring.ids)}: put the old key into OPS_ENCRYPTION_KEYS as well"
        )
    for key in keyring:
        if key.id in retired:
            continue
        if key.id not in known:
            connection.execute(insert(EncryptionKey).values(id=key.id, check_value=_seal(key)).on_conflict_do_nothing())
        elif not _opens(key, known[key.id]):
            raise EncryptionError(f"the encryption key {key.id} is not the one this database was written with")


def _seal(key: MasterKey) -> str:
    return key.fernet(CHECK_LABEL).encrypt(CHECK_TEXT.encode()).decode()


def _opens(key: MasterKey, stored: str) -> bool:
    try:
        return key.fernet(CHECK_LABEL).decrypt(stored.encode()).decode() == CHECK_TEXT
    except InvalidToken:
        return False
