"""What the settings say: keys, passwords, files."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from db.encryption import get_keyring
from db.errors import OpsError
from db.settings import SECRETS, env_files, get_settings
from worker.doctor.finding import Finding, critical, ok, warning

#: Words that stand in examples and in what people type to get going.
_PLAIN = re.compile(
    "admin|administrator|changeme|change|default|demo|dummy|example|flower|key|letmein|me|ops|password|passwd|postgres"
    "|qwerty|redis|root|secret|test|user|valkey|your"
)
MIN_ITERATIONS = 600_000


def is_weak(secret: str, least: int = 16) -> bool:
    """True for what is short, or has little left without the words of examples and runs like aaa or 123."""
    rest = _PLAIN.sub("", secret.lower())
    steps = sum(abs(ord(after) - ord(before)) > 1 for before, after in pairwise(rest))
    return len(secret) < least or steps < 6


def keys() -> Iterator[Finding]:
    settings = get_settings()
    try:
        held = get_keyring().ids
    except OpsError as error:
        yield critical("encryption key", str(error), error.hint or "set ENCRYPTION_KEY")
        return
    if not held:
        yield critical("encryption key", "none is set: no secret can be stored or opened", "ops encryption-key new")
        return
    poor = []
    if settings.encryption_key and _is_patterned(settings.encryption_key.get_secret_value()):
        poor.append("ENCRYPTION_KEY has a pattern and is not random; ops encryption-key new makes one")
    if settings.encryption_password and is_weak(settings.encryption_password.get_secret_value()):
        poor.append("ENCRYPTION_PASSWORD is easy to guess; take 20 random characters, or a key instead")
    if settings.encryption_password and settings.pbkdf2_iterations < MIN_ITERATIONS:
        poor.append(f"OPS_PBKDF2_ITERATIONS is below {MIN_ITERATIONS}")
    for each in poor:
        says, _, do = each.partition("; ")
        yield critical("encryption key", says, do or f"set it to {MIN_ITERATIONS} or more, as a new key")
    if not poor:
        yield ok("encryption key", f"{held[0]} seals; {len(held)} open")


def _is_patterned(key: str) -> bool:
    try:
        raw = base64.urlsafe_b64decode(key)
    except ValueError:
        return False  # the settings say so themselves
    # 32 random bytes have fewer than 20 different values once in 10^9.
    return len(Counter(raw)) < 20


def secret_key() -> Iterator[Finding]:
    try:
        value = get_settings().require_secret_key().decode()
    except OpsError as error:
        yield warning("SECRET_KEY", str(error), "make env")
        return
    if is_weak(value, 32):
        yield critical(
            "SECRET_KEY", "it is easy to guess", "python -c 'import secrets; print(secrets.token_urlsafe(48))'"
        )
    else:
        yield ok("SECRET_KEY", "long and not a word")


def flower() -> Iterator[Finding]:
    given = get_settings().flower_basic_auth
    if given is None:
        yield ok("Flower", "FLOWER_BASIC_AUTH is not set here, and without it Flower does not start")
        return
    _, _, password = given.get_secret_value().partition(":")
    if is_weak(password, 10):
        yield critical("Flower", "its password is easy to guess", "set FLOWER_BASIC_AUTH to user:LONG-RANDOM-PASSWORD")
    else:
        yield ok("Flower", "asks for a password that is not a word")


def debug() -> Iterator[Finding]:
    if get_settings().debug:
        yield warning(
            "DEBUG", "it is on: tracebacks are shown, and Flower starts without a password", "set DEBUG=false"
        )


def files() -> Iterator[Finding]:
    """Files that hold secrets are their owner's alone."""
    named = [Path(given) for name in SECRETS if (given := os.environ.get(f"{name}_FILE"))]
    found = False
    for path in [*env_files(), *named]:
        if not path.is_file():
            continue
        found = True
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield critical("files", f"{path} has mode {mode:04o}: others may read its secrets", f"chmod 600 {path}")
        else:
            yield ok("files", f"{path} is its owner's alone")
    if not found:
        yield ok("files", "no file with secrets is used")


CHECKS = (keys, secret_key, flower, debug, files)
