"""Logins: a password is checked, every failure is recorded, and whoever guesses is slowed down.

Attempts are counted by account and address, by address, and by account, each with some at once and then one per
interval. An attempt is counted before its password is looked at, in a transaction of its own, so that neither many at
once nor a caller who rolls back gets a guess for nothing; a success is given back.

Nobody is locked out for long by somebody else: a stranger's attempts use up what his own address may try. Where many
addresses attack one account together, those from which its owner has logged in lately are not counted with them.
Without an address all attempts on an account are counted together, and the owner waits with the stranger.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv6Address, ip_address, ip_network

from sqlalchemy.orm import Session

from db import passwords
from db.connection import beside, context_of
from db.errors import Throttled
from db.ledger import clean
from db.models import User
from db.repositories import AuditLogRepository, LoginLimitRepository, UserRepository
from db.repositories.users import Credentials
from db.specs import text


@dataclass(frozen=True, slots=True)
class Limit:
    """So many attempts at once, then one per interval."""

    kind: str
    at_once: int
    every: timedelta


PAIR = Limit("pair", 10, timedelta(minutes=1))
ADDRESS = Limit("address", 30, timedelta(seconds=10))
ACCOUNT = Limit("account", 100, timedelta(seconds=20))

_TOLD = {"pair": "account and address", "address": "address", "account": "account"}


def authenticate(session: Session, *, username: str, password: str) -> User | None:
    """The user whose password this is, or None; each failure leaves an audit entry with where it came from, which
    stays even where the session is rolled back.

    Call it first in a session: then no connection is held while the password is checked. Raises Throttled,
    InvalidInput.
    """
    text(password, "a password")
    username = clean(text(username, "a username")[:200]) or ""
    keys = _keys(username, context_of(session).get("ip_address"))
    found = _admit(session, username, keys)
    right, renewed = passwords.check(password, found.hashed_password if found else None)
    if found is not None and right and found.is_active:
        _give_back(session, keys)  # first, while the session may hold no connection yet
        user = UserRepository(session).note_login(found, renewed)
        if user is not None:
            AuditLogRepository(session).add("user.login", "user", user.id)
            return user
        reason = "changed in the meantime"
    else:
        reason = "unknown user" if found is None else "wrong password" if not right else "disabled"
    with beside(session) as own:
        AuditLogRepository(own).add(
            "user.login_failed", "user", found.id if found else None, {"username": username, "reason": reason}
        )
    return None


def _keys(username: str, address: str | None) -> list[tuple[str, Limit]]:
    """What this attempt is counted under, in the order in which the rows are locked. Of the name only a digest is
    kept: people type passwords there."""
    who = hashlib.sha256(username.lower().encode()).hexdigest()[:32]
    where = _where(address)
    keys = [(f"account:{who}", ACCOUNT), (f"pair:{who} {where or 'unknown'}", PAIR)]
    return sorted([*keys, (f"address:{where}", ADDRESS)] if where else keys)


def _where(address: str | None) -> str | None:
    """One who has an IPv6 address has 2^64 of them."""
    if address is None:
        return None
    parsed = ip_address(address)
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False))


class _UsedUp(Exception):
    """Undoes what was taken of other limits."""

    def __init__(self, key: str, limit: Limit, wait: timedelta) -> None:
        self.key, self.limit, self.wait = key, limit, wait


def _admit(session: Session, username: str, keys: list[tuple[str, Limit]]) -> Credentials | None:
    """Count the attempt, and answer what it is checked against. Raises Throttled."""
    try:
        with beside(session) as own:
            _take(LoginLimitRepository(own), keys)
            # A session that has begun may hold changes of the user that only it can see.
            return UserRepository(session if session.in_transaction() else own).get_credentials(username)
    except _UsedUp as refused:
        used_up = refused
    retry_after = max(1, math.ceil(used_up.wait.total_seconds()))
    with beside(session) as own:
        count = LoginLimitRepository(own).count_refusal(used_up.key)
        if count is not None:
            found = UserRepository(own).get_credentials(username)
            details = {"username": username, "by": _TOLD[used_up.limit.kind], "refused": count}
            AuditLogRepository(own).add("user.login_throttled", "user", found.id if found else None, details)
    raise Throttled(retry_after)


def _take(limits: LoginLimitRepository, keys: list[tuple[str, Limit]]) -> None:
    pair = next(key for key, limit in keys if limit is PAIR)
    known = not pair.endswith(" unknown") and limits.is_known(pair)
    for key, limit in keys:
        # Where the owner is known, what others try on the account does not count.
        if known and limit is ACCOUNT:
            continue
        if not limits.take(key, limit.at_once, limit.every):
            raise _UsedUp(key, limit, limits.wait(key, limit.at_once, limit.every))


def _give_back(session: Session, keys: list[tuple[str, Limit]]) -> None:
    with beside(session) as own:
        limits = LoginLimitRepository(own)
        for key, limit in keys:
            if limit is PAIR:
                limits.succeed(key)
            else:
                limits.give_back(key, limit.every)
