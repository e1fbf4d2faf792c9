"""One computation per password that is tried, whoever's it is; hashes of elsewhere get in and are renewed."""

from __future__ import annotations

import bcrypt
import pytest
from argon2 import extract_parameters
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from db import passwords

PASSWORD = "correct horse battery"


@pytest.fixture
def work(monkeypatch) -> list[str]:
    """What was computed."""
    done: list[str] = []
    for kind in (Argon2Hasher, BcryptHasher):
        for name in ("hash", "verify"):
            _count(monkeypatch, kind, name, done)
    return done


def _count(monkeypatch, kind, name: str, done: list[str]) -> None:
    real = getattr(kind, name)

    def counted(self, *arguments, **options):
        done.append(f"{kind.__name__}.{name}")
        return real(self, *arguments, **options)

    monkeypatch.setattr(kind, name, counted)


def bcrypt_hash(password: str, rounds: int = 4) -> str:
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(rounds)).decode()


def test_an_unknown_user_and_a_wrong_password_cost_the_same_work(work):
    right = passwords.hash_password(PASSWORD)
    for password, stored in (
        ("wrong password", right),
        ("wrong password", None),
        ("wrong password", ""),
        ("wrong password", "$2b$12$..."),
        ("wrong password", "plain"),
        ("wrong password", "$argon2id$nonsense"),
        ("wrong password", bcrypt_hash(PASSWORD, 4).replace("$04$", "$31$")),  # would take days
        ("x" * 100_000, right),
        ("x" * 100_000, None),
        ("\ud800", right),
        ("", None),
    ):
        work.clear()
        assert passwords.check(password, stored) == (False, None)
        assert work == ["Argon2Hasher.verify"], stored


def test_the_hash_that_stands_in_for_nobody_costs_what_a_real_one_does():
    assert extract_parameters(passwords._NOBODYS) == extract_parameters(passwords.hash_password(PASSWORD))


def test_a_right_password_with_a_hash_of_ours_is_one_computation_and_renews_nothing(work):
    stored = passwords.hash_password(PASSWORD)
    work.clear()
    assert passwords.check(PASSWORD, stored) == (True, None)
    assert work == ["Argon2Hasher.verify"]


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
def test_a_real_bcrypt_hash_lets_its_owner_in_and_is_renewed(prefix):
    stored = bcrypt_hash(PASSWORD).replace("$2b$", f"${prefix}$")
    assert passwords.check("wrong password", stored) == (False, None)
    right, renewed = passwords.check(PASSWORD, stored)
    assert right
    assert renewed.startswith("$argon2id$")
    assert passwords.check(PASSWORD, renewed) == (True, None)


def test_a_password_longer_than_bcrypt_reads_gets_in_as_it_did_where_it_was_hashed():
    password = "päss" * 30
    right, renewed = passwords.check(password, bcrypt_hash(password))
    assert right
    assert passwords.check(password, renewed) == (True, None)
    assert passwords.check(password[:-1], renewed) == (False, None)


def test_a_hash_that_bears_a_password_shows_in_no_repr():
    from db.repositories.users import Credentials

    assert "argon2" not in repr(Credentials(1, passwords.hash_password(PASSWORD), True))
