"""Keys come from the environment, each under its id, and a bad one is one line that does not repeat it."""

from __future__ import annotations

import traceback
from base64 import b64decode
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from hypothesis import given
from hypothesis import strategies as st

from db.encryption import Keyring, MasterKey, decrypt_field, encrypt_field, get_keyring, new_key
from db.errors import DecryptionError, SettingsError
from db.keyring import password_entry, split_entries
from tests.conftest import settings_from

SECRET = bytes(range(32))
PLAIN = "AKIA-do-not-show-1234567890"


@pytest.fixture
def keys() -> Iterator[Callable[..., Keyring]]:
    """The keyring of a process with these variables."""
    with settings_from({}):

        def make(**environment: str) -> Keyring:
            with settings_from(environment):
                return get_keyring()

        yield make


def test_a_password_makes_the_key_that_pbkdf2_gives(keys):
    environment = {
        "ENCRYPTION_PASSWORD": "correct horse",
        "ENCRYPTION_SALT": "battery staple",
        "OPS_PBKDF2_ITERATIONS": "100000",
    }
    derived = PBKDF2HMAC(SHA256(), 32, b"battery staple", 100_000).derive(b"correct horse")
    stored = keys(**environment).seal(PLAIN, "a.b")
    assert Keyring([MasterKey(derived)]).open(stored, "a.b") == PLAIN
    for name, value in (
        ("ENCRYPTION_SALT", "another one"),
        ("OPS_PBKDF2_ITERATIONS", "100001"),
        ("ENCRYPTION_PASSWORD", "x"),
    ):
        with pytest.raises(DecryptionError):
            keys(**environment | {name: value}).open(stored, "a.b")


def test_the_password_is_derived_once_per_process(keys, monkeypatch):
    calls = []
    monkeypatch.setattr("db.keyring._derive", lambda *args: calls.append(args) or SECRET)
    with settings_from({"ENCRYPTION_PASSWORD": "correct horse", "ENCRYPTION_SALT": "battery staple"}):
        for _ in range(3):
            assert decrypt_field(encrypt_field(PLAIN)) == PLAIN
    assert len(calls) == 1


def test_the_first_of_all_keys_seals(keys):
    one, two, three = new_key(), new_key(), new_key()
    password = {
        "ENCRYPTION_PASSWORD": "correct horse",
        "ENCRYPTION_SALT": "battery staple",
        "OPS_PBKDF2_ITERATIONS": "100000",
    }
    only_password = keys(**password)
    listed = keys(**password, OPS_ENCRYPTION_KEYS=f"2026:{two}, 2025:{three}")
    all_of_them = keys(**password, ENCRYPTION_KEY=one, OPS_ENCRYPTION_KEYS=f"2026:{two},2025:{three}")
    assert listed.ids == ["2026", "2025", only_password.ids[0]]
    assert all_of_them.ids == [*keys(ENCRYPTION_KEY=one).ids, *listed.ids]
    for ring in (only_password, listed, keys(ENCRYPTION_KEY=one)):
        assert all_of_them.open(ring.seal(PLAIN, "a.b"), "a.b") == PLAIN


def test_a_mangled_key_does_not_pass_for_another(keys):
    key = new_key()
    for mangled in (key[:-1], key[:20] + " " + key[20:], key[:20] + "*" + key[20:], key + key, key.replace("=", "")):
        with pytest.raises(SettingsError, match="ENCRYPTION_KEY is malformed"):
            keys(ENCRYPTION_KEY=mangled)


def entry(key_id: str, password: str, salt: bytes = b"salt of 8", iterations: int = 100_000) -> str:
    return password_entry(key_id, password, salt, iterations)


@given(st.text(min_size=1), st.binary(min_size=8))
def test_a_password_of_any_characters_is_one_entry(password, salt):
    made = password_entry("pw", password, salt, 100_000)
    *words, salt_text, password_text = made.split(":")
    assert words == ["pw", "pbkdf2", "100000"]
    assert (b64decode(salt_text), b64decode(password_text)) == (salt, password.encode())
    assert split_entries(f"{made}, {made}") == [made, made]


def test_every_password_has_its_own_salt_and_iterations(keys):
    one = keys(OPS_ENCRYPTION_KEYS=entry("a", "correct: horse, battery"))
    two = keys(OPS_ENCRYPTION_KEYS=f"{entry('b', 'x', iterations=100_001)},{entry('a', 'correct: horse, battery')}")
    assert two.ids == ["b", "a"]
    assert two.open(one.seal(PLAIN, "a.b"), "a.b") == PLAIN
    derived = PBKDF2HMAC(SHA256(), 32, b"salt of 8", 100_000).derive(b"correct: horse, battery")
    assert Keyring([MasterKey(derived, "a")]).open(one.seal(PLAIN, "a.b"), "a.b") == PLAIN
    for other in (entry("a", "correct: horse, battery", b"salt of 9"), entry("a", "correct: horse, battery ")):
        with pytest.raises(DecryptionError):
            keys(OPS_ENCRYPTION_KEYS=other).open(one.seal(PLAIN, "a.b"), "a.b")


def test_a_password_key_moves_into_the_list_under_its_id(keys):
    password = {
        "ENCRYPTION_PASSWORD": "correct horse",
        "ENCRYPTION_SALT": "battery staple",
        "OPS_PBKDF2_ITERATIONS": "100000",
    }
    alone = keys(**password)
    listed = keys(OPS_ENCRYPTION_KEYS=entry(alone.ids[0], "correct horse", b"battery staple"))
    assert listed.open(alone.seal(PLAIN, "a.b"), "a.b") == PLAIN


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{key}", "entry 1 is malformed"),
        ("a:{key},", "entry 2 is malformed"),
        ("a:{key},,b:{key}", "entry 2 is malformed"),
        ("a b:{key}", "entry 1 is malformed"),
        ("a:", "entry 1 is malformed"),
        ("a:{key}x", "the key a is malformed"),
        ("a:{key}:{key}", "the key a is malformed"),
        ("a:pbkdf2:600000:c2FsdHNhbHQ=", "a password reads id:pbkdf2:600000:<salt>:<password>"),
        ("a:pbkdf2:1000:c2FsdHNhbHQ=:{key}", "the iterations of the key a must be a number from 100000 to"),
        ("a:pbkdf2:many:c2FsdHNhbHQ=:{key}", "the iterations of the key a must be a number"),
        ("a:pbkdf2:600000:c2Fs:{key}", "the salt of the key a must be at least 8 bytes in base64"),
        ("a:pbkdf2:600000:c2FsdHNhbHQ=:{key}?", "the password of the key a must be given in base64"),
        ("a:{key},a:{key}", "two encryption keys have the id a"),
    ],
)
def test_a_malformed_list_of_keys_is_one_line_without_what_is_secret(keys, value, words):
    key = new_key()
    with pytest.raises(SettingsError) as error:
        keys(OPS_ENCRYPTION_KEYS=value.format(key=key))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert key[:20] not in "".join(traceback.format_exception(error.value))


def test_the_key_that_seals_can_be_named(keys):
    one, two = new_key(), new_key()
    ring = keys(ENCRYPTION_KEY=one, OPS_ENCRYPTION_KEYS=f"2026:{two}", OPS_ENCRYPTION_PRIMARY="2026")
    assert ring.ids[0] == "2026"
    assert ring.seal(PLAIN, "a.b").startswith("v1:2026:")
    with pytest.raises(SettingsError, match=r"OPS_ENCRYPTION_PRIMARY names the key 2027; the keys given are: .*, 2026"):
        keys(ENCRYPTION_KEY=one, OPS_ENCRYPTION_KEYS=f"2026:{two}", OPS_ENCRYPTION_PRIMARY="2027")
