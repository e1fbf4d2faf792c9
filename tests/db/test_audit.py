"""Whatever changes a row leaves an entry with who, what, before and after, in the same transaction, for good."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from db.connection import audit_context, current_context, get_db_session
from db.errors import AlreadyExists, InvalidInput
from db.models import APIKey, Application, AuditLog, Deployment, Infrastructure, User
from db.repositories import UserRepository
from tests.conftest import SCHEMA, Database
from worker.servers import OWNER_ROLE

Sql = Callable[..., list[tuple]]
JOB = uuid4()


def entries(session: Session, *kinds: str) -> list[AuditLog]:
    """The entries of these resource types, in order, as the session sees them."""
    session.flush()
    return list(session.scalars(select(AuditLog).where(AuditLog.resource_type.in_(kinds)).order_by(AuditLog.id)))


def told(session: Session, *kinds: str) -> list[tuple[str, str | None, dict[str, Any] | None]]:
    return [(entry.action, entry.resource_id, entry.changes) for entry in entries(session, *kinds)]


def user(name: str, **fields: Any) -> User:
    return User(username=name, email=f"{name}@example.org", **fields)


@pytest.fixture
def anna(session: Session) -> User:
    made = user("anna")
    session.add(made)
    session.commit()
    return made


@pytest.fixture
def everything(session: Session, anna: User) -> Deployment:
    """One row of each kind that people write, committed."""
    application = Application(name="shop", command=["run"])
    place = Infrastructure(name="here", owner_id=anna.id)
    key = APIKey(user_id=anna.id, service_name="aws", key_name="token", encrypted_value="value")
    session.add_all([application, place, key])
    session.flush()
    made = Deployment(user_id=anna.id, application_id=application.id, infrastructure_id=place.id, version="v1")
    session.add(made)
    session.commit()
    return made


def test_an_orm_write_is_recorded_with_the_changed_columns_only(session, anna):
    anna.email = "anna@elsewhere.org"
    session.flush()
    session.delete(anna)
    created, updated, deleted = told(session, "user")
    assert created[:2] == ("user.created", str(anna.id))
    assert created[2]["username"] == [None, "anna"]
    assert updated == ("user.updated", str(anna.id), {"email": ["anna@example.org", "anna@elsewhere.org"]})
    assert deleted[0] == "user.deleted"
    assert deleted[2]["email"] == ["anna@elsewhere.org", None]


def test_what_carries_no_fact_leaves_no_entry(session, anna):
    session.execute(update(User).values(updated_at=text("now()"), last_login_at=text("now()"), version_id=7))
    session.execute(update(User).values(email=User.email))
    assert [action for action, _, _ in told(session, "user")] == ["user.created"]


def test_a_bulk_update_or_delete_is_recorded_row_by_row(session):
    session.execute(insert(Application), [{"name": f"app-{n}", "command": [], "description": "x"} for n in range(3)])
    session.execute(update(Application).where(Application.name != "app-1").values(description="new"))
    session.execute(delete(Application).where(Application.name == "app-0"))
    found = entries(session, "application")
    assert [entry.action.partition(".")[2] for entry in found] == ["created"] * 3 + ["updated"] * 2 + ["deleted"]
    assert [entry.changes for entry in found[3:5]] == [{"description": ["x", "new"]}] * 2
    assert len({entry.resource_id for entry in found}) == 3
    assert {entry.actor for entry in found} == {"system"}


def test_an_upsert_is_recorded_as_what_became_of_each_row(session):
    session.add(Application(name="old", command=[], description="one"))
    session.flush()
    statement = upsert(Application).values(
        [{"name": name, "command": [], "description": "two"} for name in ("old", "new")]
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[text("lower(name)")], set_={"description": statement.excluded.description}
        )
    )
    _, *later = told(session, "application")
    assert sorted((action, changes["description"]) for action, _, changes in later) == [
        ("application.created", [None, "two"]),
        ("application.updated", ["one", "two"]),
    ]


def test_copy_is_recorded(database: Database, session):
    with database.connect() as plain, plain.cursor().copy("COPY users (username, email) FROM STDIN") as copy:
        copy.write_row(("one", "one@example.org"))
        copy.write_row(("two", "two@example.org"))
    found = entries(session, "user")
    assert [entry.changes["username"][1] for entry in found] == ["one", "two"]
    assert {(entry.actor_type, entry.actor, entry.db_user) for entry in found} == {("database", "ops_app", "ops_app")}


def test_truncate_is_recorded_with_the_number_of_rows(database: Database, session, anna):
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("TRUNCATE users, api_keys, infrastructure, deployments CASCADE")
    found = {entry.action: entry for entry in entries(session, "user", "secret", "infrastructure", "deployment")}
    assert found["user.truncated"].details == {"rows": 1}
    assert found["secret.truncated"].details == {"rows": 0}
    assert {"infrastructure.truncated", "deployment.truncated"} <= set(found)
    assert (found["user.truncated"].actor, found["user.truncated"].db_user) == (OWNER_ROLE, OWNER_ROLE)


def test_plain_psql_is_recorded_under_the_name_of_its_login(session, everything, sql: Sql):
    sql("UPDATE users SET role = 'viewer'")
    sql("UPDATE applications SET description = 'by hand'")
    sql("UPDATE deployments SET version = 'v2'")
    sql("DELETE FROM api_keys")
    found = [
        entry for entry in entries(session, "user", "application", "deployment", "secret") if entry.actor == "ops_app"
    ]
    assert [(entry.action, entry.changes) for entry in found[:3]] == [
        ("user.updated", {"role": ["operator", "viewer"]}),
        ("application.updated", {"description": [None, "by hand"]}),
        ("deployment.updated", {"version": ["v1", "v2"]}),
    ]
    assert found[3].action == "secret.deleted"
    assert {(entry.actor_type, entry.client, entry.ip_address) for entry in found} == {("database", None, None)}


def test_what_a_cascade_removes_is_recorded(session, anna):
    session.add(APIKey(user_id=anna.id, service_name="aws", key_name="token", encrypted_value="value"))
    session.commit()
    session.execute(delete(User))
    assert [entry.action for entry in entries(session, "secret")] == ["secret.created", "secret.deleted"]


def test_the_context_stands_beside_the_login_that_the_database_saw(session, anna):
    audit_context(
        session, actor="anna", actor_id=anna.id, ip="192.168.1.1", user_agent="curl/8", request_id="r-1", task_id=JOB,
        action="user.promote",
    )  # fmt: skip
    anna.role = "admin"
    entry = entries(session, "user")[-1]
    assert (entry.actor_type, entry.actor, entry.actor_id) == ("user", "anna", anna.id)
    assert (str(entry.ip_address), entry.user_agent, entry.request_id) == ("192.168.1.1", "curl/8", "r-1")
    assert (entry.task_id, entry.details, entry.db_user) == (JOB, {"via": "user.promote"}, "ops_app")
    assert "@" in entry.client


def test_the_context_of_one_transaction_is_not_the_next_ones(database, sql: Sql):
    with get_db_session(actor="first") as session:
        session.add(user("one"))
    with get_db_session(actor="second", ip="::1") as session:
        session.add(user("two"))
    with get_db_session() as session:
        session.add(user("three"))
    assert sql("SELECT actor, host(ip_address) FROM audit_logs WHERE resource_type = 'user' ORDER BY id") == [
        ("first", None),
        ("second", "::1"),
        ("ops_app", None),
    ]


@pytest.mark.parametrize("statement", ["UPDATE", "update"])
def test_a_statement_written_by_hand_carries_the_context_too(session, anna, statement):
    audit_context(session, actor="anna")
    session.execute(text(f"{statement} {SCHEMA}.users SET role = 'viewer'"))
    session.execute(update(User.__table__).values(role="admin"))
    assert [entry.actor for entry in entries(session, "user")[1:]] == ["anna", "anna"]


def test_the_context_of_a_job_reaches_the_sessions_opened_in_it(database, sql: Sql):
    token = current_context.set({"actor_type": "user", "actor": "anna", "task_id": str(JOB)})
    try:
        with get_db_session() as session:
            session.add(user("one"))
    finally:
        current_context.reset(token)
    assert sql("SELECT actor, task_id FROM audit_logs WHERE resource_type = 'user'") == [("anna", JOB)]


def test_what_a_client_says_of_itself_cannot_make_the_write_fail(session):
    hostile = "\0\ud800" + "x" * 10_000
    audit_context(session, actor=hostile, user_agent=hostile, request_id=hostile, action=hostile, ip="fe80::1%eth0")
    session.add(user("one"))
    (entry,) = entries(session, "user")
    assert [len(said) for said in (entry.actor, entry.user_agent, entry.request_id)] == [200, 500, 200]
    assert str(entry.ip_address) == "fe80::1"


@pytest.mark.parametrize("said", [{"ip": "nowhere"}, {"ip": "1.2.3.4/8"}, {"task_id": "not-a-job"}])
def test_a_context_that_the_database_would_refuse_is_refused_when_it_is_given(session, said):
    with pytest.raises(InvalidInput):
        audit_context(session, **said)
    session.add(user("one"))
    session.flush()


def test_a_rollback_leaves_nothing(session, anna):
    anna.role = "admin"
    session.flush()
    session.rollback()
    assert [action for action, _, _ in told(session, "user")] == ["user.created"]


def test_a_write_after_a_savepoint_was_rolled_back_keeps_the_context(session):
    audit_context(session, actor="anna")
    undone = session.begin_nested()
    session.add(user("undone"))
    session.flush()
    undone.rollback()
    session.add(user("done"))
    session.flush()
    with session.begin_nested():
        session.add(user("inside"))
    session.add(user("after"))
    found = entries(session, "user")
    assert [(entry.changes["username"][1], entry.actor) for entry in found] == [
        ("done", "anna"), ("inside", "anna"), ("after", "anna"),
    ]  # fmt: skip


def test_who_acts_is_said_once_for_writes_with_savepoints_and_anew_when_another_does(session):
    said: list[object] = []

    def note(_connection, _cursor, statement, parameters, *_):
        if "set_config" in statement:
            said.append(parameters)

    event.listen(session.get_bind(), "before_cursor_execute", note)
    try:
        rows = UserRepository(session)
        audit_context(session, actor="anna")
        rows.add(user("one"))
        with pytest.raises(AlreadyExists):
            rows.add(user("one"))
        rows.add(user("two"))
        undone = session.begin_nested()
        audit_context(session, actor="ben")
        rows.add(user("undone"))
        undone.rollback()
        rows.add(user("three"))
    finally:
        event.remove(session.get_bind(), "before_cursor_execute", note)
    assert [entry.actor for entry in entries(session, "user")] == ["anna", "anna", "ben"]
    assert len(said) == 3  # anna; ben; ben again, whose savepoint took it along


def test_secret_columns_are_never_shown(session, everything, sql: Sql):
    hidden = "never-to-be-seen"
    session.execute(update(User).values(hashed_password=hidden))
    session.execute(update(APIKey).values(encrypted_value=hidden))
    session.execute(update(Infrastructure).values(settings={"a": hidden}, encrypted_settings=hidden))
    session.execute(
        update(Application).values(
            command=[hidden], working_directory=f"/{hidden}", health_check_url=f"http://{hidden}",
            configuration={"environment": {"A": hidden}},
        )
    )  # fmt: skip
    session.execute(update(User).values(hashed_password=None))
    session.commit()
    ((ciphertext,),) = sql("SELECT encrypted_value FROM api_keys")
    trail = json.dumps(sql("SELECT to_jsonb(a) FROM audit_logs a"))
    assert hidden not in trail
    assert ciphertext not in trail
    shown = {
        entry.resource_type: entry.changes for entry in entries(session, "secret", "infrastructure", "application")
    }
    assert shown["secret"] == {"encrypted_value": ["[secret]", "[secret]"]}
    assert shown["infrastructure"] == {
        "settings": ["[secret]", "[secret]"], "encrypted_settings": [None, "[secret]"],
    }  # fmt: skip
    assert set(shown["application"]) == {"command", "working_directory", "health_check_url", "configuration"}
    passwords = [entry.changes["hashed_password"] for entry in entries(session, "user")[1:]]
    assert passwords == [[None, "[secret]"], ["[secret]", None]]


def test_a_changed_primary_key_is_one_row_that_went_and_one_that_came(database: Database, session, sql: Sql):
    sql("INSERT INTO encryption_keys (id, check_value) VALUES ('old', 'x')")
    sql("UPDATE encryption_keys SET id = 'new'")
    first, *then = [(action, key) for action, key, _ in told(session, "encryption_key")]
    assert first == ("encryption_key.created", "old")
    assert sorted(then) == [("encryption_key.created", "new"), ("encryption_key.deleted", "old")]


def test_a_huge_value_is_kept_as_its_beginning_length_and_digest(session):
    session.add(Application(name="shop", command=[], description="é" * 20_000))
    ((_, _, changes),) = told(session, "application")
    before, after = changes["description"]
    assert before is None
    assert after["head"].startswith('"ééé')
    assert (after["length"], len(after["sha256"])) == (20_002, 64)
    assert len(json.dumps(changes)) < 10_000


def test_an_entry_commits_with_the_change_it_tells_of(database: Database, session, sql: Sql):
    session.add(user("one"))
    session.flush()
    assert sql("SELECT count(*) FROM audit_logs WHERE resource_type = 'user'") == [(0,)]
    session.commit()
    assert sql("SELECT u.xmin::text::xid8 = a.xid FROM users u, audit_logs a WHERE resource_type = 'user'") == [(True,)]


def test_a_write_that_cannot_be_recorded_does_not_happen(database: Database, sql: Sql):
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("ALTER TABLE audit_logs ADD CHECK (resource_type <> 'user')")
    with pytest.raises(psycopg.errors.CheckViolation):
        sql("INSERT INTO users (username, email) VALUES ('one', 'one@example.org')")
    assert sql("SELECT count(*) FROM users") == [(0,)]
