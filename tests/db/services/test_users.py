"""Accounts: who may make them, who gets in, and what a wrong one is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.orm import Session

from db import connection, passwords
from db.connection import audit_context
from db.errors import AlreadyExists, Conflict, InvalidInput, NotFound, PermissionDenied
from db.models import User
from db.repositories import AuditLogRepository, UserRepository
from db.service import DatabaseService
from db.services import logins, users
from tests.db.services.conftest import one_line, rows

PASSWORD = "correct horse battery"
MISSION = "$2b$12$..."


@pytest.fixture
def login(session: Session) -> User:
    return users.create(session, username="Eve", email="eve@example.org", password=PASSWORD)


def reasons(session: Session) -> list[tuple[str, str]]:
    found = AuditLogRepository(session).search(action="user.login_failed").items
    return [(entry.details["username"], entry.details["reason"]) for entry in reversed(found)]


def test_the_example_of_the_documentation_runs_as_written(session):
    user = DatabaseService(session).create_user_with_audit(
        username="john_doe", email="john@example.com", hashed_password=MISSION, ip_address="192.168.1.1"
    )
    assert (user.hashed_password, user.role, user.is_active) == (MISSION, "operator", True)
    (entry,) = AuditLogRepository(session).search(resource=f"user:{user.id}").items
    assert (entry.action, str(entry.ip_address)) == ("user.created", "192.168.1.1")


@pytest.mark.parametrize(("username", "email"), [("EVE", "x@example.org"), ("x", "Eve@Example.org")])
def test_a_taken_name_or_address_is_one_line_and_the_session_goes_on(session, login, username, email):
    with pytest.raises(AlreadyExists) as error:
        users.create(session, username=username, email=email)
    assert one_line(error) == f"a user with this {'username' if username == 'EVE' else 'email'} exists already"
    users.create(session, username="other", email="other@example.org")


def test_what_cannot_be_a_user_is_refused_in_one_line_with_nothing_written(session):
    before = rows(session)
    for field, value in (
        ("username", ""),
        ("username", "has space"),
        ("username", "line\n"),
        ("username", "x" * 64),
        ("username", "-dash"),
        ("username", "ünal"),
        ("email", "nobody"),
        ("email", "a@b\nc"),
        ("email", f"{'a' * 65}@example.org"),
        ("role", "root"),
        ("password", "short"),
        ("password", "x" * 1025),
    ):
        with pytest.raises(InvalidInput) as error:
            users.create(session, **{"username": "one", "email": "one@example.org"} | {field: value})
        assert field in one_line(error)
    assert rows(session) == before


def test_the_right_password_gets_in_and_the_login_is_recorded(session, login):
    assert logins.authenticate(session, username="eve", password=PASSWORD) is login
    assert login.last_login_at is not None
    assert AuditLogRepository(session).search(resource=f"user:{login.id}").items[0].action == "user.login"


def test_each_failure_is_recorded_with_where_it_came_from(session, login):
    service = DatabaseService(session)
    assert service.authenticate("eve", "wrong password", ip_address="10.0.0.9", user_agent="curl") is None
    assert service.authenticate("nobody", PASSWORD) is None
    users.set_active(session, user=login, active=False)
    assert service.authenticate("eve", PASSWORD) is None
    assert reasons(session) == [("eve", "wrong password"), ("nobody", "unknown user"), ("eve", "disabled")]
    first = AuditLogRepository(session).search(action="user.login_failed").items[-1]
    assert (str(first.ip_address), first.user_agent) == ("10.0.0.9", "curl")
    assert PASSWORD not in str([entry.details for entry in AuditLogRepository(session).search(limit=100).items])


@pytest.mark.parametrize(
    "stored",
    [
        MISSION,
        "",
        None,
        "plain",
        "$argon2id$nonsense",
        "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$",
        "$2b$12$" + "x" * 53,
        "\ud800",
    ],
)
def test_a_hash_that_is_none_lets_nobody_in_and_never_raises(stored):
    assert passwords.check(PASSWORD, stored) == (False, None)
    assert passwords.check("", stored) == (False, None)


def test_nothing_that_is_typed_into_a_login_raises(session, login):
    typed = ["\0", "eve\0", "\ud800", "x" * 100_000, "", "'; DROP TABLE users; --"]
    for said in typed:
        assert logins.authenticate(session, username=said, password=PASSWORD) is None
        assert logins.authenticate(session, username="eve", password=said) is None
    assert len(reasons(session)) == 2 * len(typed)


def test_a_stored_mission_hash_answers_none(session):
    users.create(session, username="john_doe", email="john@example.com", hashed_password=MISSION)
    assert logins.authenticate(session, username="john_doe", password=MISSION) is None
    assert reasons(session) == [("john_doe", "wrong password")]


def test_a_login_disturbs_nobody_who_edits_the_user_meanwhile(session, login, database):
    session.commit()
    with Session(session.get_bind(), expire_on_commit=False) as other:
        theirs = UserRepository(other).require_by_username("eve")
        assert logins.authenticate(session, username="eve", password=PASSWORD)
        session.commit()
        users.set_active(other, user=theirs, active=False)
        other.commit()
    session.refresh(login)
    assert (login.is_active, login.last_login_at is None) == (False, False)


def test_the_slower_of_two_editors_changes_nothing_and_learns_why(session, login):
    session.commit()
    with Session(session.get_bind(), expire_on_commit=False) as other:
        theirs = UserRepository(other).require_by_username("eve")
        users.set_active(session, user=login, active=False)
        session.commit()
        with pytest.raises(Conflict) as error:
            users.set_password(other, user=theirs, password="another password")
        assert one_line(error) == "this user has been changed by somebody else; look again"
        assert theirs.is_active is False  # as the database has it
        users.set_password(other, user=theirs, password="another password")
        other.commit()
    session.expire_all()
    assert logins.authenticate(session, username="eve", password="another password") is None
    assert reasons(session) == [("eve", "disabled")]


def test_a_new_password_replaces_the_old_one(session, login):
    users.set_password(session, user=login, password="another password")
    assert logins.authenticate(session, username="eve", password=PASSWORD) is None
    assert logins.authenticate(session, username="eve", password="another password") is login


def test_two_hashes_of_one_password_differ():
    first, second = passwords.hash_password(PASSWORD), passwords.hash_password(PASSWORD)
    assert first != second
    assert first.startswith("$argon2id$")


def test_only_an_admin_makes_and_disables_users(session, person, login):
    for role in ("viewer", "operator"):
        actor = person(role, role)
        for deed in (
            lambda: users.create(session, username="x", email="x@example.org", actor=actor),  # noqa: B023
            lambda: users.set_active(session, user=login, active=False, actor=actor),  # noqa: B023
            lambda: users.set_password(session, user=login, password="another password", actor=actor),  # noqa: B023
        ):
            with pytest.raises(PermissionDenied, match=f"needs the role admin; {role} is {role}"):
                deed()
        users.set_password(session, user=actor, password="my own password", actor=actor)
    admin = person("root", "admin")
    users.set_active(session, user=login, active=False, actor=admin)
    with pytest.raises(PermissionDenied, match="Eve is disabled"):
        users.set_password(session, user=login, password="my own password", actor=login)


def test_the_actor_of_a_service_stands_in_the_trail(session, person):
    admin = person("root", "admin")
    audit_context(session, request_id="r-1")
    made = DatabaseService(session, actor=admin).create_user_with_audit("new", "new@example.org")
    (entry,) = AuditLogRepository(session).search(resource=f"user:{made.id}").items
    assert (entry.actor, entry.actor_id, entry.actor_type, entry.request_id) == ("root", admin.id, "user", "r-1")


def test_nobody_is_told_as_nobody(session):
    with pytest.raises(NotFound) as error:
        UserRepository(session).require_by_username("nobody")
    assert one_line(error) == "there is no user 'nobody'"
    for key in (0, -1, 10**30):
        with pytest.raises(NotFound):
            UserRepository(session).require(key)


def test_the_last_active_admin_cannot_be_disabled(session, person) -> None:
    """Nobody could undo it: not even `ops db init`, whose admin would take the same address."""
    first, second = person("first", "admin"), person("second", "admin")
    users.set_active(session, user=second, active=False, actor=first)
    with pytest.raises(Conflict, match=r"^first is the last active admin$"):
        users.set_active(session, user=first, active=False, actor=first)
    assert first.is_active
    users.set_active(session, user=second, active=True, actor=first)
    users.set_active(session, user=first, active=False, actor=second)


def test_of_two_admins_who_disable_each_other_at_once_one_stays(database, session, person) -> None:
    first, second = person("first", "admin"), person("second", "admin")
    session.commit()
    with ThreadPoolExecutor(1) as pool, Session(connection.get_engine()) as other:
        connection.audit_context(other)
        users.set_active(session, user=second, active=False)
        attempt = pool.submit(lambda: users.set_active(other, user=other.merge(first), active=False))
        with database.connect("postgres") as root:
            waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            while not root.execute(waits).fetchone():
                assert not attempt.done()
        session.commit()
        with pytest.raises(Conflict, match="last active admin"):
            attempt.result(30)
        other.rollback()
