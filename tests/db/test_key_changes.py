"""A key is promoted when every worker holds it, and retired when no row needs it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from db import preflight
from db.connection import conninfo, get_db_session
from db.encryption import Unreadable, new_key
from db.errors import EncryptionError, NotFound, PermissionDenied, Refused
from db.ledger import Ledger
from db.models import APIKey, Infrastructure, User
from db.services import keys, secrets
from db.states import Role
from tests.conftest import SCHEMA, Database, settings_from
from tests.db.sealing import AFTER, BEFORE, OURS, everything_is_new, rotate, wait_until

Sql = Callable[..., list[tuple]]


def say_alive(name: str, info: dict[str, object], kind: str = "worker") -> None:
    ledger = Ledger(conninfo(), SCHEMA)
    ledger.say_alive(f"id of {name}", kind, name, "host", 1, info)
    ledger.close()


def promote(key_id: str = "new", **options: object) -> keys.Promotion:
    with get_db_session(actor="ann") as session:
        return keys.promote(session, key_id=key_id, **options)


def retire(key_id: str = "old") -> None:
    with get_db_session(actor="ann") as session:
        keys.retire(session, key_id=key_id, tables=OURS)


def test_a_key_is_promoted_once_every_living_worker_holds_it(sealed, sql: Sql):
    with settings_from(BEFORE):
        say_alive("w1", {"keys": ["old", "new"]})
        say_alive("w2", {"keys": ["old"]})
        say_alive("w3", {})
        say_alive("beat", {}, kind="beat")
        say_alive("dead", {"keys": ["old"]})
        sql("UPDATE processes SET seen_at = now() - interval '1 minute' WHERE name = 'dead'")
        with pytest.raises(Refused, match="not held by w2, w3") as error:
            promote()
        assert "--force" in str(error.value.hint)
        assert sql("SELECT 1 FROM audit_logs WHERE action = 'encryption_key.promoted'") == []
        assert [holder.name for holder in promote(force=True).lacking] == ["w2", "w3"]
        say_alive("w2", {"keys": ["old", "new"]})
        say_alive("w3", {"keys": ["old", "new"]})
        assert promote() == keys.Promotion("new", "old", [], 3)
    details = [
        {"instead_of": "old", "workers": 3, "without_it": ["w2", "w3"]},
        {"instead_of": "old", "workers": 3, "without_it": []},
    ]
    found = sql("SELECT actor, resource_id, details FROM audit_logs WHERE action = 'encryption_key.promoted'")
    assert found == [("ann", "new", each) for each in details]


def test_a_key_that_this_process_does_not_hold_is_not_promoted(sealed):
    with settings_from(BEFORE), pytest.raises(Refused, match="does not hold the key other; it holds: old, new"):
        promote("other")


def test_nothing_is_sealed_with_a_key_that_a_worker_does_not_hold(sealed):
    with settings_from(AFTER):
        say_alive("w1", {"keys": ["old"]})
        rotation = keys.Rotation(OURS)
        with get_db_session() as session, pytest.raises(Refused, match="not held by w1"):
            rotation.prepare(session)
        say_alive("w1", {"keys": ["old", "new"]})
        with get_db_session() as session:
            assert [late.name for late in rotation.prepare(session)] == ["w1"]


def test_a_key_that_a_row_needs_is_not_retired(sealed, sql: Sql):
    sealed(2)
    with settings_from(AFTER):
        with pytest.raises(Refused, match=r"old is still needed: rows: 2 of .*api_keys\.encrypted_value, 2 of"):
            retire()
        rotate()
    with settings_from(AFTER):
        retire()
        retire()
    assert sql("SELECT id, check_value IS NULL, retired_at IS NULL FROM encryption_keys ORDER BY 1") == [
        ("new", False, True), ("old", True, False),
    ]  # fmt: skip
    entries = sql("SELECT actor FROM audit_logs WHERE action = 'encryption_key.retired' AND resource_id = 'old'")
    assert entries == [("ann",)]


def test_the_key_that_seals_is_not_retired_here_or_in_a_worker(sealed):
    with settings_from(AFTER):
        with pytest.raises(Refused, match="new seals what is written now"):
            retire("new")
        with pytest.raises(NotFound):
            retire("other")
        say_alive("w1", {"keys": ["old", "new"]})
        with pytest.raises(Refused, match="the key old still seals in w1"):
            retire()


def test_a_retired_key_seals_nothing_any_more(sealed, sql: Sql):
    sealed(1)
    rotate()
    with settings_from(AFTER):
        retire()
        preflight.check_start(patience=0)  # it may still be held
    with settings_from(BEFORE):
        with pytest.raises(EncryptionError, match="old was retired and seals nothing any more; remove it from OPS"):
            preflight.check_start(patience=0)
        # A process that was not started anew since.
        for change in (APIKey(user_id=1, service_name="s", key_name="late", encrypted_value="x"), None):
            with pytest.raises(OperationalError, match="the encryption key old was retired"):
                write_late(change)
    with settings_from(AFTER), pytest.raises(Refused, match="old was retired"):
        promote("old")
    assert sql("SELECT count(*) FROM encryption_keys WHERE check_value IS NOT NULL") == [(1,)]
    everything_is_new(1)


def write_late(fresh: APIKey | None) -> None:
    with get_db_session() as session:
        if fresh is not None:
            session.add(fresh)
        else:
            session.scalars(select(Infrastructure).limit(1)).one().encrypted_settings = "x"


def test_a_write_of_the_old_key_and_its_retirement_wait_for_each_other(sealed, database: Database):
    sealed(1)
    rotate()
    with settings_from(AFTER), database.connect() as writer, ThreadPoolExecutor(1) as threads:
        with writer.transaction():
            writer.execute("UPDATE api_keys SET encrypted_value = 'v1:old:late'")
            retiring = threads.submit(retire)
            wait_until(
                lambda: (
                    writer.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype <> 'relation'").fetchone()
                    or retiring.done()
                )
            )
        with pytest.raises(Refused, match="old is still needed: rows: 1 of"):
            retiring.result(timeout=30)


def test_only_an_admin_changes_keys(sealed):
    someone = User(username="bob", email="b@example.org", role=Role.OPERATOR, is_active=True)
    with settings_from(BEFORE), get_db_session() as session:
        for change in (
            lambda: keys.promote(session, key_id="new", actor=someone),
            lambda: keys.retire(session, key_id="old", tables=OURS, actor=someone),
            lambda: keys.Rotation(OURS).prepare(session, actor=someone),
        ):
            with pytest.raises(PermissionDenied):
                change()


def test_when_all_keys_are_lost_another_one_is_taken_as_documented(sealed, sql: Sql):
    sealed(1)
    with settings_from({"ENCRYPTION_KEY": new_key(), "OPS_ENCRYPTION_KEYS": ""}):
        with pytest.raises(EncryptionError, match="was written with the encryption keys new, old"):
            preflight.check_start(patience=0)
        sql("UPDATE encryption_keys SET check_value = NULL, retired_at = now() WHERE id IN ('old', 'new')")
        preflight.check_start(patience=0)
        with get_db_session() as session:
            row = session.scalars(select(APIKey)).one()
            assert isinstance(row.encrypted_value, Unreadable)
            secrets.store(session, user_id=row.user_id, service_name="s", key_name="k0", value="anew")
        with get_db_session() as session:
            assert session.scalars(select(APIKey)).one().encrypted_value == "anew"
