"""Rows that an old key has sealed, and the environment of a process before and after another key is promoted."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import select

from db.connection import get_db_session
from db.encryption import new_key
from db.models import APIKey, Base, Infrastructure, User
from db.repositories import EncryptedTable, encrypted_tables
from db.services import keys
from tests.conftest import settings_from

OLD, NEW = new_key(), new_key()
BEFORE = {"ENCRYPTION_KEY": "", "OPS_ENCRYPTION_KEYS": f"old:{OLD},new:{NEW}"}
AFTER = BEFORE | {"OPS_ENCRYPTION_PRIMARY": "new"}
OURS = encrypted_tables([Base.metadata])


def write_sealed(count: int) -> None:
    """Secrets and infrastructure, sealed with the old key."""
    with settings_from(BEFORE), get_db_session() as session:
        owner = User(username="anna", email="anna@example.org")
        session.add(owner)
        session.flush()
        for n in range(count):
            session.add(APIKey(user_id=owner.id, service_name="s", key_name=f"k{n}", encrypted_value=f"v{n}"))
            session.add(Infrastructure(owner_id=owner.id, name=f"i{n}", encrypted_settings=f"e{n}"))
        session.add(Infrastructure(owner_id=owner.id, name="bare"))


def used(*more: EncryptedTable) -> dict[str, dict[str | None, int]]:
    with get_db_session() as session:
        found = keys.usage(session, [*OURS, *more])
    return {table.rpartition(".")[2]: dict(counts) for (table, _), counts in found.items() if counts}


def rotate(**options: object) -> list[keys.Step]:
    with settings_from(AFTER):
        return list(keys.Rotation(OURS, {"actor": "ann", "action": "rotation"}, **options).run())


def everything_is_new(count: int) -> None:
    assert used() == {"api_keys": {"new": count}, "infrastructure": {"new": count}}
    with settings_from({"ENCRYPTION_KEY": "", "OPS_ENCRYPTION_KEYS": f"new:{NEW}"}), get_db_session() as session:
        assert {k.key_name: k.encrypted_value for k in session.scalars(select(APIKey))} == {
            f"k{n}": f"v{n}" for n in range(count)
        }
        settings = {i.name: i.encrypted_settings for i in session.scalars(select(Infrastructure))}
        assert settings == {f"i{n}": f"e{n}" for n in range(count)} | {"bare": None}


def wait_until(look: Callable[[], object]) -> None:
    """Until the database shows it, which nothing can be told by."""
    end = time.monotonic() + 60
    while not look():
        assert time.monotonic() < end
        time.sleep(0.02)
