"""What is encrypted opens again, opens nowhere else, and shows itself to nobody on the way."""

from __future__ import annotations

import base64
import copy
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.encryption import (
    Encrypted,
    Keyring,
    MasterKey,
    decrypt_field,
    get_keyring,
    reset_keyring,
)
from db.errors import DecryptionError, EncryptionError, OpsError, SettingsError
from db.models import APIKey, Infrastructure, User
from db.settings import get_settings
from tests.conftest import Database, settings_from

SECRET = bytes(range(32))
PLAIN = "AKIA-do-not-show-1234567890"
RING = Keyring([MasterKey(SECRET, "now"), MasterKey(b"o" * 32, "old")])

any_text = st.text(st.characters(exclude_categories=()))


@pytest.fixture
def keys() -> Iterator[Callable[..., Keyring]]:
    """The keyring of a process with these variables."""
    with settings_from({}):

        def make(**environment: str) -> Keyring:
            with settings_from(environment):
                return get_keyring()

        yield make


@pytest.fixture
def owner(session: Session) -> User:
    user = User(username="anna", email="anna@example.org")
    session.add(user)
    session.flush()
    return user


def api_key(owner: User, value: object) -> APIKey:
    return APIKey(user_id=owner.id, service_name="aws", key_name="token", encrypted_value=value)


@given(any_text, st.text())
def test_any_text_comes_back_as_it_was(plaintext, label):
    stored = RING.seal(plaintext, label)
    assert RING.open(stored, label) == plaintext


@given(st.text(st.characters(exclude_categories=()), min_size=12))
def test_nothing_of_the_plaintext_stands_in_what_is_stored(plaintext):
    first, second = RING.seal(plaintext, "a.b"), RING.seal(plaintext, "a.b")
    assert first != second
    assert plaintext not in first


def test_a_stored_value_names_its_format_and_its_key():
    version, key_id, token = RING.seal(PLAIN, "a.b").split(":")
    assert (version, key_id) == ("v1", "now")
    assert base64.urlsafe_b64decode(token)[0] == 0x80  # a Fernet token


@given(any_text, st.sampled_from(["api_keys.encrypted_value", "field", "", "infrastructure.encrypted_settings"]))
def test_a_value_moved_to_another_field_does_not_open(plaintext, label):
    stored = RING.seal(plaintext, "users.other")
    with pytest.raises(DecryptionError, match="damaged, or sealed for another field"):
        RING.open(stored, label)


@given(st.integers(len("v1:now:"), 120), st.sampled_from("AbC9-_"))
def test_a_damaged_token_does_not_open_and_is_not_shown(place, other):
    stored = RING.seal(PLAIN, "a.b")
    damaged = stored[:place] + ("x" if stored[place] == other else other) + stored[place + 1 :]
    with pytest.raises(DecryptionError) as error:
        RING.open(damaged, "a.b")
    assert damaged[7:] not in str(error.value)


@given(any_text)
def test_what_is_no_encrypted_value_is_a_decryption_error(text):
    for stored in (text, f"v1:{text}", f"v1:now:{text}", f"v2:now:{text}", ""):
        with pytest.raises(DecryptionError):
            RING.open(stored, "a.b")


def test_an_unknown_key_is_named_and_the_old_ones_open_still():
    old = Keyring([MasterKey(b"o" * 32, "old")]).seal(PLAIN, "a.b")
    assert RING.open(old, "a.b") == PLAIN
    assert RING.seal(PLAIN, "a.b").startswith("v1:now:")
    lost = Keyring([MasterKey(b"l" * 32, "lost")]).seal(PLAIN, "a.b")
    with pytest.raises(DecryptionError) as error:
        RING.open(lost, "a.b")
    assert str(error.value) == "a.b does not open with key lost: this process does not hold that key"


def test_another_key_of_the_same_id_does_not_open():
    stored = Keyring([MasterKey(b"x" * 32, "now")]).seal(PLAIN, "a.b")
    with pytest.raises(DecryptionError):
        RING.open(stored, "a.b")


def test_two_keys_of_one_id_are_refused():
    with pytest.raises(SettingsError, match="two encryption keys have the id same"):
        Keyring([MasterKey(b"a" * 32, "same"), MasterKey(b"b" * 32, "same")])


def test_without_a_key_the_error_is_one_line_that_says_what_to_set(keys):
    empty = keys()
    with pytest.raises(EncryptionError) as error:
        empty.seal(PLAIN, "a.b")
    assert isinstance(error.value, SettingsError)
    assert str(error.value) == "no encryption key; set ENCRYPTION_KEY to the output of: ops encryption-key new"
    assert empty.ids == []


def test_key_bytes_are_in_no_text_and_leave_no_process(keys):
    text = base64.urlsafe_b64encode(SECRET).decode()
    ring = keys(ENCRYPTION_KEY=text)
    key = ring.primary
    assert key is not None
    ring.seal(PLAIN, "a.b")
    for shown in (repr(key), str(key), f"{ring!r} {ring}", repr(key.fernet("a.b")), repr(list(ring))):
        assert text[:8] not in shown
        assert repr(SECRET[:4])[2:-1] not in shown
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        for thing in (key, ring) if leave is not copy.copy else (key,):
            with pytest.raises(TypeError) as error:
                leave(thing)
            assert text[:8] not in str(error.value)
    assert key.id not in (text[:8], SECRET.hex()[:8])


def test_the_key_is_in_no_statement_cache_key_or_compiled_statement(keys):
    text = base64.urlsafe_b64encode(SECRET).decode()
    with settings_from({"ENCRYPTION_KEY": text}):
        statement = select(APIKey).where(APIKey.encrypted_value.is_not(None))
        compiled = statement.compile()
        shown = [repr(statement._generate_cache_key()), str(compiled), repr(compiled.params)]
        shown += [repr(APIKey.__table__.c.encrypted_value.type), repr(pickle.dumps(Encrypted("a.b")))]
        for each in shown:
            assert text[:8] not in each
            assert "MasterKey" not in each


@pytest.mark.parametrize(
    "build",
    [
        lambda column: column == PLAIN,
        lambda column: column != PLAIN,
        lambda column: column == None,  # noqa: E711
        lambda column: column < PLAIN,
        lambda column: column.like("AKIA%"),
        lambda column: column.in_([PLAIN]),
        lambda column: column.startswith("AKIA"),
        lambda column: column.is_distinct_from(PLAIN),
        lambda column: column + "x",
        lambda column: "x" + column,
        lambda column: column.desc(),
        lambda column: column.asc(),
        lambda column: column.between("a", "b"),
        lambda column: select(APIKey).filter_by(encrypted_value=PLAIN),
    ],
)
def test_a_comparison_that_would_find_nothing_is_refused_when_it_is_built(build):
    for column in (APIKey.encrypted_value, APIKey.__table__.c.encrypted_value):
        with pytest.raises(TypeError, match="encrypted column cannot be compared") as error:
            build(column)
        assert PLAIN not in str(error.value)


def test_sorting_and_grouping_by_an_encrypted_column_is_refused(session):
    column = APIKey.encrypted_value
    for statement in (
        select(APIKey).order_by(column),
        select(APIKey.id).order_by(APIKey.id, func.lower(column)),
        select(func.count()).group_by(column),
    ):
        with pytest.raises(TypeError, match="cannot be compared or sorted"):
            session.execute(statement)


def test_only_whether_it_is_set_can_be_asked(session, owner):
    session.add_all([place(owner, "bare", None), place(owner, "full", PLAIN)])
    session.flush()
    column = Infrastructure.encrypted_settings
    assert session.scalars(select(Infrastructure.name).where(column.is_(None))).all() == ["bare"]
    assert session.scalars(select(Infrastructure.name).where(column.is_not(None))).all() == ["full"]


def place(owner: User, name: str, value: str | None) -> Infrastructure:
    return Infrastructure(owner_id=owner.id, name=name, encrypted_settings=value)


@pytest.mark.parametrize("value", ["", PLAIN, "zeile\nzwei\t\0", "\ud800 alone", "ü" * 10_000, "x" * 1_000_000])
def test_the_attribute_is_plain_and_the_column_is_not(session, owner, sql, value):
    session.add_all([api_key(owner, value), place(owner, "here", value), place(owner, "none", None)])
    session.commit()
    session.expire_all()
    assert session.scalars(select(APIKey)).one().encrypted_value == value
    places = {row.name: row.encrypted_settings for row in session.scalars(select(Infrastructure))}
    assert places == {"here": value, "none": None}
    (stored,) = sql("SELECT encrypted_value FROM api_keys")[0]
    assert stored.startswith(f"v1:{get_keyring().ids[0]}:")
    assert sql("SELECT encrypted_settings IS NULL FROM infrastructure ORDER BY name") == [(False,), (True,)]
    with pytest.raises(DecryptionError):
        decrypt_field(stored)  # sealed for its column
    assert decrypt_field(stored, "api_keys.encrypted_value") == value


def test_a_bulk_update_encrypts_as_well(session, owner):
    key = api_key(owner, "old")
    session.add(key)
    session.flush()
    session.execute(update(APIKey).values(encrypted_value=PLAIN))
    assert key.encrypted_value == PLAIN
    session.expire_all()
    assert key.encrypted_value == PLAIN


def test_a_ciphertext_copied_into_another_column_does_not_open(session, owner, sql):
    session.add_all([api_key(owner, PLAIN), place(owner, "here", "other")])
    session.commit()
    session.expire_all()
    sql("UPDATE infrastructure SET encrypted_settings = (SELECT encrypted_value FROM api_keys)")
    (copied,) = session.scalars(select(Infrastructure.encrypted_settings)).all()
    with pytest.raises(DecryptionError, match=r"infrastructure\.encrypted_settings does not open"):
        str(copied)


def test_a_model_prints_no_secret(session, owner):
    key = api_key(owner, PLAIN)
    owner.hashed_password = "$argon2id$hash"
    session.add(key)
    session.flush()
    assert PLAIN not in repr(key)
    assert "encrypted_value=***" in repr(key)
    assert "argon2" not in repr(owner)


def nowhere(*texts: str) -> None:
    for text in texts:
        assert PLAIN not in text


def everything_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


def test_no_key_is_the_same_one_line_when_a_row_is_written(session, owner, monkeypatch):
    monkeypatch.delenv("ENCRYPTION_KEY")
    get_settings.cache_clear()
    reset_keyring()
    session.add(api_key(owner, PLAIN))
    with pytest.raises(SettingsError) as error:
        session.flush()
    assert isinstance(error.value, EncryptionError)
    assert isinstance(error.value, OpsError)
    assert "\n" not in str(error.value)
    nowhere(everything_of(error.value))


def store_for_nobody(value: object) -> None:
    with get_db_session(actor="test") as session:
        session.add(User(username="anna", email="anna@example.org"))
        session.flush()
        session.add(APIKey(user_id=10**12, service_name="aws", key_name="token", encrypted_value=value))


@pytest.mark.parametrize("debug", ["false", "true"])
def test_a_value_that_fails_to_be_stored_is_in_no_error_and_no_log(database, debug, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with settings_from({"DATABASE_DEBUG": debug}):
        for value, kind in ((PLAIN, IntegrityError), (PLAIN.encode(), StatementError), ([PLAIN], StatementError)):
            with pytest.raises(kind) as error:
                store_for_nobody(value)
            nowhere(everything_of(error.value))
            assert "parameters hidden" in str(error.value)
        with get_db_session(actor="test") as session:
            session.add(User(username="anna", email="anna@example.org", hashed_password=PLAIN))
    out, err = capfd.readouterr()
    nowhere(caplog.text, out, err)
    assert ("INSERT INTO" in caplog.text + out + err) is (debug == "true")


def test_the_server_log_has_no_value_that_was_refused(database: Database):
    for _ in range(2):
        with pytest.raises(IntegrityError):
            store_for_nobody(PLAIN)
    nowhere(database.stack.postgres.log.read_text(errors="replace"))
