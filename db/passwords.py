"""Passwords: Argon2id, one lane, pwdlib's recommended cost. Hashes that bcrypt made elsewhere are verified as well.

Checking a password does the same work, one computation, whether the account exists or not, so that its time does not
tell. Of an account whose hash is still bcrypt's it does, up to its next login, which replaces the hash.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from db.loop import off_loop

MIN_LENGTH = 10
MAX_LENGTH = 1024
#: bcrypt reads no further. Libraries before 5.0 cut the rest off unasked; so hashes of longer passwords are about.
BCRYPT_BYTES = 72
#: Each round more doubles the work; 16 takes seconds, 31 days.
MAX_BCRYPT_ROUNDS = 16
#: The hash of random bytes that were thrown away, at the cost of a real one.
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=1$nI60a+CzymvJ2ZAUNIRDOg$Vy0qZHDzppyTkUK00mj1hHquLaDD3ds53U7Zmp49FMc"


class _Bcrypt(BcryptHasher):
    def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002 - the protocol's name
        typed = password.encode() if isinstance(password, str) else password
        return super().verify(typed[:BCRYPT_BYTES], hash)


@lru_cache(maxsize=1)
def _hasher() -> PasswordHash:
    return PasswordHash((Argon2Hasher(parallelism=1), _Bcrypt()))


def hash_password(password: str) -> str:
    """A hash to store (about 50 ms of one core)."""
    return off_loop(_hasher().hash, password)


def check(password: str, hashed: str | None) -> tuple[bool, str | None]:
    """Whether the password is the one that was hashed; and if so and the hash is not as we make them now, a new one
    to store in its place. What is no hash we know, or none at all, answers False after the work of a wrong password."""
    return off_loop(_check, password, hashed)


def _check(password: str, hashed: str | None) -> tuple[bool, str | None]:
    possible = len(password) <= MAX_LENGTH and is_text(password)
    stored = hashed if hashed is not None and _is_bearable(hashed) else _NOBODYS
    try:
        right, renewed = _hasher().verify_and_update(password if possible else "", stored)
    except ValueError:  # it looks like bcrypt's and is not
        right, renewed = _hasher().verify_and_update("", _NOBODYS)
    return (True, renewed) if right and possible else (False, None)


def _is_bearable(hashed: str) -> bool:
    """Whether it is of a kind we know, and does not take for ever."""
    if not is_text(hashed) or not any(hasher.identify(hashed) for hasher in _hasher().hashers):
        return False
    rounds = re.match(r"\$2[abxy]\$(\d\d)", hashed)
    return rounds is None or int(rounds[1]) <= MAX_BCRYPT_ROUNDS


def is_text(password: str) -> bool:
    """False for broken Unicode, which has no bytes to hash."""
    try:
        password.encode()
    except UnicodeEncodeError:
        return False
    return True
