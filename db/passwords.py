"""Passwords: Argon2id, one lane, pwdlib's recommended cost. Verifying tells nothing of whether an account exists."""

from __future__ import annotations

from functools import lru_cache

from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher

MIN_LENGTH = 10
MAX_LENGTH = 1024


@lru_cache(maxsize=1)
def _hasher() -> PasswordHash:
    return PasswordHash((Argon2Hasher(parallelism=1),))


def hash_password(password: str) -> str:
    """A hash to store (about 50 ms of one core)."""
    return _hasher().hash(password)


def verify(password: str, hashed: str | None) -> bool:
    """True when the password is the one that was hashed. What is no hash we know, or none at all, answers False after
    the same work as a wrong password would take."""
    possible = hashed is not None and _is_text(password) and len(password) <= MAX_LENGTH
    try:
        return _hasher().verify(password if possible else "", hashed or _nobodys_hash()) and possible
    except (UnknownHashError, ValueError):
        _hasher().verify("", _nobodys_hash())
        return False


def _is_text(password: str) -> bool:
    """False for broken Unicode, which has no bytes to hash."""
    try:
        password.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return _hasher().hash("nobody has this password")
