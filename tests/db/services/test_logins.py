"""Whoever guesses is slowed down and recorded; whose account it is gets in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import bcrypt
import pytest
from sqlalchemy import event, func, select, text, update
from sqlalchemy.orm import Session

from db import passwords
from db.connection import get_db_session, get_engine
from db.errors import Throttled
from db.models import LoginLimit, User
from db.repositories import AuditLogRepository
from db.service import DatabaseService
from db.services import logins, maintenance, users
from tests.db.services.conftest import one_line

PASSWORD = "correct horse battery"
HERE, THERE = "10.0.0.1", "192.0.2.7"


@pytest.fixture
def login(session: Session) -> User:
    made = users.create(session, username="Eve", email="eve@example.org", password=PASSWORD)
    session.commit()
    return made


@pytest.fixture
def fast(monkeypatch) -> list[str]:
    """Passwords that are compared, not hashed; what was tried."""
    tried: list[str] = []

    def check(password: str, _hashed: str | None) -> tuple[bool, str | None]:
        tried.append(password)
        return password == PASSWORD and _hashed is not None, None

    monkeypatch.setattr(passwords, "check", check)
    return tried


def attempt(password: str, address: str | None = HERE, name: str = "eve") -> bool:
    """One login as an application does it: whoever is refused has its session rolled back."""
    try:
        with get_db_session() as session:
            assert DatabaseService(session).authenticate(name, password, ip_address=address, user_agent="curl")
    except AssertionError:
        return False
    return True


#: The limits, but so slow to come back that none does while a busy machine makes its attempts.
PAIR, ADDRESS, ACCOUNT = (
    replace(each, every=60 * each.every) for each in (logins.PAIR, logins.ADDRESS, logins.ACCOUNT)
)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("PAIR", PAIR), ("ADDRESS", ADDRESS), ("ACCOUNT", ACCOUNT)):
        monkeypatch.setattr(logins, name, limit)


def use_up(address: str | None, times: int = PAIR.at_once, name: str = "eve") -> None:
    for n in range(times):
        assert not attempt(f"wrong {n}", address, name)


def later(session: Session, by: timedelta) -> None:
    """As if this much time had passed."""
    session.execute(
        update(LoginLimit).values(
            refills_at=LoginLimit.refills_at - by, told_at=LoginLimit.told_at - by,
            succeeded_at=LoginLimit.succeeded_at - by,
        )
    )  # fmt: skip
    session.commit()


def entries(session: Session, action: str) -> list:
    session.rollback()
    return list(reversed(AuditLogRepository(session).search(action=action, limit=500).items))


def test_a_failure_is_recorded_although_the_caller_rolls_back(session, login, fast):
    assert not attempt("wrong password")
    assert not attempt("wrong password", name="nobody")
    told = [
        (e.resource_id, e.details["reason"], str(e.ip_address), e.user_agent)
        for e in entries(session, "user.login_failed")
    ]
    assert told == [(str(login.id), "wrong password", HERE, "curl"), (None, "unknown user", HERE, "curl")]
    assert session.scalar(select(User.last_login_at)) is None


def test_whoever_does_not_get_in_costs_one_check_and_as_many_statements(session, login, fast):
    users.create(session, username="off", email="off@example.org", password=PASSWORD)
    session.execute(update(User).where(User.username == "off").values(is_active=False))
    session.commit()
    sent: list[str] = []
    event.listen(get_engine(), "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    work = []
    for name, password in (("eve", "wrong"), ("nobody", "wrong"), ("off", PASSWORD), ("off", "wrong")):
        fast.clear()
        sent.clear()
        assert not attempt(password, name=name)
        work.append((len(fast), len(sent)))
    assert len(set(work)) == 1
    assert work[0][0] == 1


def test_whoever_guesses_has_to_wait_and_one_attempt_comes_back_at_a_time(session, login, fast):
    use_up(HERE)
    with pytest.raises(Throttled) as error:
        attempt(PASSWORD)
    assert one_line(error) == f"too many attempts to log in; try again in {error.value.retry_after} s"
    assert PAIR.every.total_seconds() - 60 < error.value.retry_after <= PAIR.every.total_seconds()
    assert PASSWORD not in fast  # not even looked at
    later(session, PAIR.every)
    assert not attempt("wrong again")
    with pytest.raises(Throttled):
        attempt(PASSWORD)
    later(session, PAIR.every)
    assert attempt(PASSWORD)
    use_up(HERE)  # and all are there again


def test_nobody_is_kept_out_by_a_stranger_at_another_address(session, login, fast):
    use_up(THERE)
    for _ in range(20):
        with pytest.raises(Throttled):
            attempt("wrong", THERE)
    assert attempt(PASSWORD, HERE)


def test_an_address_that_tries_many_accounts_has_to_wait(session, login, fast):
    for n in range(ADDRESS.at_once):
        assert not attempt("wrong", THERE, f"user{n}")
    with pytest.raises(Throttled) as error:
        attempt(PASSWORD, THERE)
    assert error.value.retry_after <= ADDRESS.every.total_seconds()
    assert attempt(PASSWORD, HERE)


def test_where_the_owner_is_known_an_attack_from_everywhere_does_not_keep_him_out(session, login, fast):
    assert attempt(PASSWORD, HERE)
    for n in range(ACCOUNT.at_once):
        assert not attempt("wrong", f"198.51.100.{n}")
    with pytest.raises(Throttled):
        attempt(PASSWORD, "203.0.113.1")
    assert attempt(PASSWORD, HERE)
    (entry,) = entries(session, "user.login_throttled")
    assert (entry.resource_id, entry.details["by"]) == (str(login.id), "account")


def test_many_at_once_get_no_more_guesses_than_one_after_the_other(session, login, fast):
    count = 25
    barrier = threading.Barrier(count)

    def guess(n: int) -> str:
        barrier.wait()
        try:
            return "in" if attempt(f"guess {n}") else "wrong"
        except Throttled:
            return "throttled"

    with ThreadPoolExecutor(count) as pool:
        ends = sorted(pool.map(guess, range(count)))
    assert ends == ["throttled"] * (count - PAIR.at_once) + ["wrong"] * PAIR.at_once
    assert len(fast) == PAIR.at_once


def test_no_connection_is_held_while_a_password_is_checked(session, login, monkeypatch):
    session.rollback()
    held = []
    real = passwords.check

    def check(*arguments):
        held.append(get_engine().pool.checkedout())
        return real(*arguments)

    monkeypatch.setattr(passwords, "check", check)
    assert attempt(PASSWORD)
    assert held == [0]


def test_a_host_with_a_network_of_addresses_is_one(session, login, fast):
    for n in range(PAIR.at_once):
        assert not attempt("wrong", f"2001:db8:0:7::{n + 1:x}")
    with pytest.raises(Throttled):
        attempt(PASSWORD, "2001:db8:0:7:ffff::1")
    assert attempt(PASSWORD, "2001:db8:0:8::1")
    use_up("::ffff:10.0.0.9")
    with pytest.raises(Throttled):
        attempt(PASSWORD, "10.0.0.9")


def test_a_name_counts_whatever_its_case_and_no_key_shows_it(session, login, fast):
    for name in ("eve", "EVE", "Eve", "eVe", "evE") * 2:
        assert not attempt("wrong", name=name)
    with pytest.raises(Throttled):
        attempt(PASSWORD)
    assert not any("eve" in key.lower() for key in session.scalars(select(LoginLimit.key)))


def test_without_an_address_attempts_on_an_account_count_together(session, login, fast):
    use_up(None)
    with pytest.raises(Throttled):
        attempt(PASSWORD, None)
    assert not attempt("wrong", None, "another")


def test_an_address_said_of_the_session_counts_as_well(session, login, fast):
    use_up(HERE)
    with get_db_session(ip=HERE) as own, pytest.raises(Throttled):
        DatabaseService(own).authenticate("eve", PASSWORD)


def test_refusals_are_told_of_once_a_minute_with_their_number(session, login, fast):
    use_up(HERE)
    for _ in range(7):
        with pytest.raises(Throttled):
            attempt(PASSWORD)
    first = entries(session, "user.login_throttled")
    assert [(e.details["refused"], e.details["by"], str(e.ip_address)) for e in first] == [
        (1, "account and address", HERE)
    ]
    session.execute(update(LoginLimit).values(told_at=LoginLimit.told_at - timedelta(minutes=2)))
    session.commit()
    with pytest.raises(Throttled):
        attempt(PASSWORD)
    assert [e.details["refused"] for e in entries(session, "user.login_throttled")] == [1, 7]


def test_what_tells_nothing_any_more_is_removed_and_where_the_owner_is_known_stays(session, login, fast):
    assert attempt(PASSWORD)
    use_up(THERE)
    for _ in range(3):
        with pytest.raises(Throttled):
            attempt(PASSWORD, THERE)
    session.rollback()
    later(session, timedelta(hours=30))
    assert maintenance.tidy(session)["login_limits"] == 4  # the account, two addresses, the stranger's pair
    session.commit()
    assert [e.details["refused"] for e in entries(session, "user.login_throttled")] == [1, 2]
    (known,) = session.scalars(select(LoginLimit.key)).all()
    assert known.endswith(HERE)
    later(session, timedelta(days=31))
    assert maintenance.tidy(session) == {"login_limits": 1}


def test_a_bcrypt_hash_is_renewed_by_the_first_login(session):
    stored = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    users.create(session, username="old", email="old@example.org", hashed_password=stored)
    session.commit()
    assert attempt(PASSWORD, name="old")
    session.rollback()
    assert session.scalar(select(User.hashed_password)).startswith("$argon2id$")
    assert attempt(PASSWORD, name="old")
    assert not attempt("wrong password", name="old")
    shown = str([(e.changes, e.details) for e in AuditLogRepository(session).search(limit=100).items])
    assert "argon2" not in shown


@pytest.mark.parametrize("change", [{"hashed_password": "another"}, {"is_active": False}])
def test_who_is_changed_while_the_password_is_checked_is_not_let_in(session, login, monkeypatch, change):
    real = passwords.check

    def check(*arguments):
        answer = real(*arguments)
        session.execute(update(User).values(**change))
        session.commit()
        return answer

    monkeypatch.setattr(passwords, "check", check)
    assert not attempt(PASSWORD)
    (entry,) = entries(session, "user.login_failed")
    assert entry.details["reason"] == "changed in the meantime"


def test_a_login_in_a_session_that_has_changed_the_user_waits_for_nobody(session, login):
    session.execute(text("SET LOCAL lock_timeout = '2s'"))
    users.set_password(session, user=login, password="another password")
    assert logins.authenticate(session, username="eve", password="another password") is login
    assert logins.authenticate(session, username="eve", password=PASSWORD) is None


def test_attempts_leave_a_bounded_number_of_rows(session, login, fast):
    for n in range(ADDRESS.at_once + 20):
        try:
            attempt("wrong", THERE, f"user{n}")
        except Throttled:
            continue
    session.rollback()
    assert session.scalar(select(func.count()).select_from(LoginLimit)) == 2 * ADDRESS.at_once + 1
