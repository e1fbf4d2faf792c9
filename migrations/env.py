"""How migrations run: as the tables' owner, in our schema alone, one at a time, and never waiting long for a lock.

Each is a transaction of its own, so that none holds the locks of the one before while it works.

All names in migrations are without a schema; the search path of the migrating connection puts them into ours
(``OPS_DATABASE_SCHEMA``), whose version table is ``ops_alembic_version``, so that the platform can live in a database
that has tables and migrations of its own.
"""

from __future__ import annotations

import logging.config
from pathlib import Path
from typing import Any

import psycopg
from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.util import CommandError
from sqlalchemy import BLANK_SCHEMA, MetaData, create_engine, pool, text
from sqlalchemy.exc import DBAPIError

from db import encryption
from db.errors import OpsError
from db.migrate import TIMEOUTS, explain, migration_lock, take_turn
from db.models import Base
from db.models.audit_log import XID8
from db.models.base import Word
from db.settings import get_settings

VERSION_TABLE = "ops_alembic_version"

OUR_TABLES = {table.name for table in Base.metadata.tables.values()}

schema = get_settings().database_schema


def target_metadata() -> MetaData:
    """Our tables without their schema, as the migrating connection sees them."""
    plain = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.sorted_tables:
        table.to_metadata(plain, schema=None, referred_schema_fn=lambda *_: BLANK_SCHEMA)
    return plain


def include_name(name: str | None, type_: str, _parents: Any) -> bool:
    """Compare our tables only; the partitions of the audit trail come and go by themselves."""
    if type_ == "schema":
        return name is None
    if type_ == "table":
        return name in OUR_TABLES
    return True


def render_item(type_: str, item: Any, autogen: AutogenContext) -> str | bool:
    """Our column types are plain text in a migration: a migration must run without any key or enum of today."""
    if type_ == "type" and isinstance(item, Word):
        return "sa.Text()"
    if type_ == "type" and isinstance(item, XID8):
        autogen.imports.add("from db.models.audit_log import XID8")
        return "XID8()"
    return encryption.render_item(type_, item, autogen)


def prepare(run: Any) -> None:
    """Search path, timeouts and schema of the session, which does nothing but migrate."""
    run(f"SET search_path = {schema}, pg_temp")
    for statement in TIMEOUTS:
        run(statement)
    # Asked first: CREATE ... IF NOT EXISTS wants a right to make schemas even where there is nothing to make.
    run(f"DO $$BEGIN IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF; END$$")


options: dict[str, Any] = {
    "version_table": VERSION_TABLE,
    "include_name": include_name,
    "render_item": render_item,
    "compare_type": True,
    "compare_server_default": True,
    "transaction_per_migration": True,
}


def run_online() -> None:
    engine = create_engine(
        get_settings().require_database_url(owner=True), poolclass=pool.NullPool, hide_parameters=True
    )
    with engine.connect() as connection:
        # What Alembic takes for the default schema, whose tables it names without one.
        connection.dialect.default_schema_name = schema
        context.configure(connection=connection, target_metadata=target_metadata(), **options)
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        take_turn(driver_connection)
        prepare(lambda statement: connection.execute(text(statement)))
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()


def run_offline() -> None:
    context.configure(
        dialect_name="postgresql",
        target_metadata=target_metadata(),
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        **options,
    )
    context.execute(f"SELECT pg_advisory_lock(hashtextextended('{migration_lock()}', 0))")
    prepare(context.execute)
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    config = context.config
    if config.config_file_name and Path(config.config_file_name).is_file() and not config.attributes.get("quiet"):
        logging.config.fileConfig(config.config_file_name, disable_existing_loggers=False)
    if context.is_offline_mode():
        run_offline()
    else:
        run_online()


try:
    main()
except OpsError as error:  # one line for whoever typed the command
    raise CommandError(str(error)) from None
except (DBAPIError, psycopg.Error) as error:
    raise CommandError(str(explain(error))) from None
