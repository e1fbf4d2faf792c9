"""The front door: what comes in wrong is one typed error with nothing written, and rights are checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from db import service
from db.errors import Conflict, InvalidInput, NotFound, OpsError, PermissionDenied
from db.models import Deployment, MonitoringAlert, User
from db.repositories import AuditLogRepository
from db.service import DatabaseService
from db.services import logins
from tests.conftest import SCHEMA
from tests.db.services.conftest import one_line, rows

PASSWORD = "correct horse battery"
METHODS = sorted(
    name for name, _ in inspect.getmembers(DatabaseService, inspect.isfunction) if not name.startswith("_")
)
HUGE = "x" * 100_000
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 2**31, 2**63 - 1, 2**63, 10**30, 1.5, float("nan"), float("inf")),
    *("", " ", "1", "\0", "a\0b", "\ud800", "line\nbreak", "\u2028", "\N{RIGHT-TO-LEFT OVERRIDE}", HUGE),
    *("'; DROP TABLE users; --", "%s", "${HOME}", "../.."),
    *(b"bytes", [], ["\0"], [None], {}, {"a": "\0"}, {"\0": 1}, {1: 2}, object(), (), {1}),
    *(datetime(1, 1, 1), datetime(9999, 12, 31, tzinfo=UTC)),  # noqa: DTZ001
]


@pytest.fixture
def anna(session: Session) -> User:
    return DatabaseService(session).create_user_with_audit("anna", "anna@example.org", password=PASSWORD)


@pytest.fixture
def alert(session: Session) -> MonitoringAlert:
    made = MonitoringAlert(
        fingerprint="f",
        alert_type="deployment_failed",
        severity="high",
        title="t",
        fired_at=datetime.now().astimezone(),
    )
    session.add(made)
    session.flush()
    return made


@pytest.fixture
def good(session: Session, anna: User, alert: MonitoringAlert) -> dict[str, dict[str, Any]]:
    """For every method, arguments that it takes; committed, so that a session may be rolled back."""
    door = DatabaseService(session)
    shop = door.register_application("shop", ["deploy"])
    here = door.register_infrastructure("here", anna.id)
    door.store_api_key(anna.id, "aws", "token", "value")
    asked = door.create_deployment(anna.id, shop.id, here.id, "v1")
    outside = door.create_deployment(anna.id, shop.id, here.id, "v2")
    door.cancel_deployment(outside.id)
    back = (door.register_application("back", ["deploy"]).id, here.id)
    for version in ("v1", "v2"):
        at = datetime.now().astimezone()
        put = {"application_id": back[0], "infrastructure_id": back[1], "status": "success", "finished_at": at}
        session.add(Deployment(user_id=anna.id, version=version, started_at=at, **put))
    session.commit()
    user, page = {"user_id": anna.id}, {"limit": 1, "cursor": None}
    made = {
        "create_user_with_audit": {
            "username": "ben", "email": "ben@example.org", "hashed_password": "$2b$12$...", "password": None,
            "role": "viewer", "ip_address": "10.0.0.1", "user_agent": "curl",
        },
        "authenticate": {"username": "anna", "password": PASSWORD, "ip_address": "10.0.0.1", "user_agent": "curl"},
        "get_user": user,
        "list_users": page,
        "set_password": user | {"password": "another password"},
        "set_user_role": user | {"role": "viewer"},
        "set_user_active": user | {"active": False},
        "store_api_key": user | {"service_name": "aws", "key_name": "other", "key_value": "value"},
        "list_api_keys": user,
        "delete_api_key": user | {"service_name": "aws", "key_name": "token"},
        "register_application": {"name": "new", "command": ["deploy"], "description": "d", "configuration": {}},
        "edit_application": {
            "application_id": shop.id, "version_id": 1, "name": "renamed", "working_directory": "/srv",
            "health_check_url": "http://127.0.0.1/healthz",
        },
        "remove_application": {"application_id": door.register_application("idle", ["x"]).id},
        "get_application": {"application_id": shop.id},
        "list_applications": page,
        "register_infrastructure": {"name": "new", "owner_id": anna.id, "region": "r", "settings": {}},
        "edit_infrastructure": {"infrastructure_id": here.id, "version_id": 1, "environment": "dev", "provider": "p"},
        "remove_infrastructure": {"infrastructure_id": door.register_infrastructure("idle", anna.id).id},
        "get_infrastructure": {"infrastructure_id": here.id},
        "list_infrastructure": page,
        "create_deployment": user
        | {"application_id": shop.id, "infrastructure_id": here.id, "version": "v3", "priority": 1, "digest": None},
        "rollback": user | {"application_id": back[0], "infrastructure_id": back[1], "version": None},
        "update_deployment_status": {"deployment_id": outside.id, "status": "rolled_back", "error_message": "m"},
        "cancel_deployment": {"deployment_id": asked.id, "reason": "because"},
        "retry_deployment": {"deployment_id": outside.id},
        "get_deployment": {"deployment_id": asked.id},
        "list_deployments": page
        | user
        | {"application_id": shop.id, "infrastructure_id": here.id, "status": "pending"},
        "read_deployment_log": {"deployment_id": asked.id, "after": 0, "limit": 10},
        **alerting(door, anna, alert, page),
        **watching(door, anna, page),
        **scheduling(door, anna, page),
        **hosting(door, asked, here.id),
        "search_audit": page
        | {
            "resource": "user:1", "actor": "system", "action": "user.*", "task_id": None, "changed": "role",
            "to": "viewer", "since": None, "until": None,
        },
        "get_user_activity": user | {"limit": 5},
    }  # fmt: skip
    session.commit()
    return made


Goods = dict[str, dict[str, Any]]


def alerting(door: DatabaseService, anna: User, alert: MonitoringAlert, page: dict[str, Any]) -> Goods:
    matchers, until = {"check": "web*"}, datetime.now(UTC) + timedelta(hours=2)
    span = {"matchers": matchers, "starts_at": None, "ends_at": until}
    one = {"alert_id": alert.id}
    return {
        "list_alerts": page | {"status": "firing", "application_id": 1, "infrastructure_id": 1},
        "get_alert": one,
        "read_alert_timeline": one,
        "acknowledge_alert": one,
        "assign_alert": one | {"user_id": anna.id},
        "note_alert": one | {"text": "the provider works on it"},
        "resolve_alert": one,
        "silence_alert": one | {"ends_at": until, "comment": "known"},
        "add_silence": span | {"comment": "known"},
        "end_silence": {"silence_id": door.add_silence(matchers, until).id},
        "list_silences": page,
        "plan_maintenance": span | {"title": "new disks"},
        "end_maintenance": {"window_id": door.plan_maintenance("new disks", matchers, until).id},
        "list_maintenance": page,
    }


def watching(door: DatabaseService, anna: User, page: dict[str, Any]) -> Goods:
    site = door.add_check("site", "http", anna.id, config={"url": "http://127.0.0.1/"}).id
    rests = door.add_check("rests", "tcp", anna.id, config={"host": "127.0.0.1", "port": 1}).id
    door.pause_check(rests)
    nightly = door.add_check("nightly", "heartbeat", anna.id, config={"period_seconds": 3600})
    return {
        "add_check": {
            "name": "new", "kind": "celery", "owner_id": anna.id, "config": {"queue": "checks"}, "labels": {"a": "b"},
            "application_id": 1, "infrastructure_id": 1,
        },
        "edit_check": {"check_id": site, "version_id": 1, "interval_seconds": 30, "public": True},
        "pause_check": {"check_id": site},
        "resume_check": {"check_id": rests},
        "remove_check": {"check_id": site},
        "get_check": {"check_id": site},
        "list_checks": page | {"state": "unknown", "kind": "http", "application_id": 1, "infrastructure_id": 1},
        "read_check_history": {"check_id": site, "results": 10},
        "ping_heartbeat": {"name": "nightly", "signal": "fail"},
        "beat_heartbeat": {"token": nightly.ping_token, "signal": "start"},
    }  # fmt: skip


def scheduling(door: DatabaseService, anna: User, page: dict[str, Any]) -> Goods:
    task = {"name": "shop.report", "queue": "shop"}
    asleep = door.add_schedule("asleep", anna.id, every="1h", task=task).id
    awake = door.add_schedule("awake", anna.id, every="1h", task=task).id
    door.pause_schedule(asleep)
    return {
        "add_schedule": {
            "name": "new", "user_id": anna.id, "cron": "30 2 * * *", "timezone": "Europe/Berlin",
            "deploy": {"application": "shop", "infrastructure": "here", "version": "v1"},
        },
        "edit_schedule": {"schedule_id": awake, "version_id": 1, "every": "2h", "overlap": "queue"},
        "pause_schedule": {"schedule_id": awake, "reason": "too loud"},
        "resume_schedule": {"schedule_id": asleep},
        "run_schedule": {"schedule_id": awake},
        "remove_schedule": {"schedule_id": awake},
        "get_schedule": {"schedule_id": awake},
        "list_schedules": page,
        "read_schedule_times": {"schedule_id": awake, "count": 3},
        "read_schedule_runs": {"schedule_id": awake, "limit": 3},
    }  # fmt: skip


def hosting(door: DatabaseService, asked: Deployment, here: int) -> Goods:
    web1, _ = door.add_host(here, "web1", "10.0.0.1"), door.add_host(here, "web2", "10.0.0.2")
    return {
        "add_host": {"infrastructure_id": here, "name": "web3", "address": "10.0.0.3", "port": 2222},
        "edit_host": {"host_id": web1.id, "version_id": 1, "address": "web1.example.org", "host_key": None},
        "order_hosts": {"infrastructure_id": here, "names": ["web2", "web1"]},
        "remove_host": {"host_id": web1.id},
        "list_hosts": {"infrastructure_id": here},
        "list_deployment_hosts": {"deployment_id": asked.id},
    }


def test_every_method_takes_what_it_says(session, good, monkeypatch):
    assert sorted(good) == METHODS
    for name in METHODS:
        known = {*inspect.signature(getattr(DatabaseService, name)).parameters} - {"self", "fields"}
        assert known <= {*good[name]}, name
        if name == "update_deployment_status":  # only what succeeded is rolled back
            with pytest.raises(Conflict, match="cannot become rolled_back"):
                DatabaseService(session).update_deployment_status(**good[name])
        else:
            getattr(DatabaseService(session), name)(**good[name])
        session.rollback()


@pytest.mark.parametrize("name", METHODS)
def test_a_bad_value_is_one_typed_error_with_nothing_written(name, session, good, monkeypatch):
    # What is tried here is the door, not how long one has to wait, nor how long hashing takes.
    monkeypatch.setattr(logins, "_take", lambda *_: None)
    monkeypatch.setattr(service.users.passwords, "hash_password", lambda password: password.encode() and "hash")
    monkeypatch.setattr(logins.passwords, "check", lambda password, hashed: (False, None))
    before = counted(session, name)

    def knock(field: str, value: Any) -> None:
        refused = None
        try:
            getattr(DatabaseService(session), name)(**good[name] | {field: value})
        except OpsError as error:
            refused = str(error)
        if refused is not None:
            assert 0 < len(refused) < 500, (field, value)
            assert "\n" not in refused, (field, value)
            # The session goes on, and holds nothing of what was refused.
            assert counted(session, name) == before, (field, value)
        session.rollback()
        session.info.clear()

    for field in good[name]:
        for value in NASTY:
            knock(field, value)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.sampled_from(sorted(good[name])), st.one_of(st.text(), st.integers(), st.floats(), st.binary()))
    def any_value(field: str, value: Any) -> None:
        knock(field, value)

    any_value()


def counted(session: Session, name: str) -> dict[str, int]:
    """Rows per table; a failed login leaves its entry on purpose."""
    return {t: n for t, n in rows(session).items() if name != "authenticate" or t not in ("audit_logs", "login_limits")}


def test_a_field_that_nobody_knows_is_refused(session, good):
    door = DatabaseService(session)
    for deed in (
        lambda: door.register_application("a", ["x"], hocus="pocus"),
        lambda: door.edit_application(1, hocus="pocus"),
        lambda: door.register_infrastructure("a", 1, encrypted_settings="x"),
    ):
        with pytest.raises(InvalidInput, match=r"(hocus|encrypted_settings): unknown; known are: name, "):
            deed()


@pytest.mark.parametrize(
    "noun",
    [
        *("users", "applications", "infrastructure", "deployments", "alerts", "audit"),
        *("checks", "schedules", "silences", "maintenance"),
    ],
)
def test_every_list_comes_in_pages_by_cursor(session, good, noun):
    door = DatabaseService(session)
    for n in range(3):
        door.register_application(f"a{n}", ["x"])
        door.register_infrastructure(f"i{n}", 1)
        door.create_user_with_audit(f"u{n}", f"u{n}@example.org")
        door.create_deployment(1, 1, 1, f"v{n}")
        door.add_check(f"c{n}", "celery", 1, config={"queue": "checks"})
        door.add_schedule(f"s{n}", 1, every="1h", task={"name": "t", "queue": "q"})
        until = datetime.now(UTC) + timedelta(hours=n + 1)
        door.add_silence({"check": f"c{n}"}, until)
        door.plan_maintenance("disks", {"check": f"c{n}"}, until)
        door.plan_maintenance("disks", {"check": f"d{n}"}, until)
        session.add(
            MonitoringAlert(
                fingerprint=f"f{n}", alert_type="t", severity="low", title="t", fired_at=datetime.now().astimezone()
            )
        )
    session.flush()
    list_: Callable[..., Any] = door.search_audit if noun == "audit" else getattr(door, f"list_{noun}")
    seen, cursor = [], None
    while True:
        page = list_(limit=2, cursor=cursor)
        seen += [row.id for row in page.items]
        if (cursor := page.next) is None:
            break
    assert seen == sorted(seen, reverse=True)
    assert seen == [row.id for row in list_(limit=1000).items]
    assert len(seen) > 3
    with pytest.raises(InvalidInput, match="this is no cursor of"):
        list_(cursor="A" * 32)


def test_an_edit_of_what_was_changed_since_it_was_looked_at_is_a_conflict(session, good):
    door = DatabaseService(session)
    seen = door.get_application(1).version_id
    door.edit_application(1, version_id=seen, description="first")
    with pytest.raises(Conflict) as error:
        door.edit_application(1, version_id=seen, description="second")
    assert one_line(error) == "this application has been changed by somebody else; look again"
    assert door.get_application(1).description == "first"
    door.edit_infrastructure(1, version_id=1, region="eu")
    with pytest.raises(Conflict):
        door.edit_infrastructure(1, version_id=1, region="us")


def test_an_alert_is_acknowledged_once_by_a_named_person_and_resolved_once(session, anna, alert):
    door = DatabaseService(session, actor=anna)
    seen = door.acknowledge_alert(alert.id)
    assert (seen.acknowledged_by_id, seen.acknowledged_at is None, seen.status) == (anna.id, False, "firing")
    with pytest.raises(Conflict, match="acknowledged already"):
        door.acknowledge_alert(alert.id)
    assert door.resolve_alert(alert.id).resolved_at is not None
    with pytest.raises(Conflict, match="resolved already"):
        door.resolve_alert(alert.id)
    with pytest.raises(NotFound, match="there is no alert 4711"):
        door.resolve_alert(4711)
    told = AuditLogRepository(session).search(resource=f"alert:{alert.id}").items
    assert [(entry.action, entry.actor) for entry in told][:2] == [("alert.updated", "anna")] * 2


#: Who may what: the least role; "self" is what one may do oneself, whatever one's role.
RIGHTS = {
    "viewer": {name for name in METHODS if name.startswith(("get_", "list_", "search_", "read_"))} - {"list_api_keys"},
    "operator": {
        "register_application", "edit_application", "edit_infrastructure", "update_deployment_status",
        "cancel_deployment", "retry_deployment", "acknowledge_alert", "resolve_alert", "assign_alert", "note_alert",
        "silence_alert", "add_silence", "end_silence", "plan_maintenance", "end_maintenance", "pause_check",
        "resume_check", "ping_heartbeat", "pause_schedule", "add_host", "edit_host", "order_hosts", "remove_host",
    },
    "admin": {
        "create_user_with_audit", "set_user_role", "set_user_active", "remove_application", "remove_infrastructure",
        "set_password", "store_api_key", "list_api_keys", "delete_api_key", "register_infrastructure",
        "create_deployment", "rollback", "add_check", "edit_check", "remove_check", "add_schedule", "edit_schedule",
        "resume_schedule", "run_schedule", "remove_schedule",
    },
}  # fmt: skip


def test_each_role_may_what_it_says_and_no_more(session, good):
    assert sorted(set.union(*RIGHTS.values()) | {"authenticate", "beat_heartbeat"}) == METHODS
    door = DatabaseService(session)
    people = {role: door.create_user_with_audit(role, f"{role}@example.org", role=role) for role in RIGHTS}
    gone = door.create_user_with_audit("gone", "gone@example.org", role="admin")
    gone.is_active = False
    session.commit()
    for role, actor in [*people.items(), ("gone", gone)]:
        for least, names in RIGHTS.items():
            may = role != "gone" and list(RIGHTS).index(role) >= list(RIGHTS).index(least)
            for name in names:
                before = rows(session)
                try:
                    getattr(DatabaseService(session, actor=actor), name)(**good[name])
                except PermissionDenied:
                    assert not may, (role, name)
                    assert rows(session) == before
                except Conflict:
                    assert (may, name) == (True, "update_deployment_status")
                else:
                    assert may, (role, name)
                session.rollback()
                session.info.clear()


def test_one_manages_what_is_ones_own_and_a_viewer_does_not_deploy(session, good):
    door = DatabaseService(session)
    viewer = door.create_user_with_audit("vic", "vic@example.org", role="viewer")
    own = DatabaseService(session, actor=viewer)
    own.store_api_key(viewer.id, "aws", "token", "value")
    assert [key.name for key in own.list_api_keys(viewer.id)] == ["aws/token"]
    own.delete_api_key(viewer.id, "aws", "token")
    own.set_password(viewer.id, "a new password")
    for deed in (
        lambda: own.create_deployment(viewer.id, 1, 1, "v1"),
        lambda: own.register_infrastructure("mine", viewer.id),
        lambda: own.set_user_role(viewer.id, "admin"),
        lambda: door.create_deployment(viewer.id, 1, 1, "v1"),  # the system deploys in the name of nobody who may not
    ):
        with pytest.raises(PermissionDenied, match="needs the role"):
            deed()


def test_a_list_opens_no_secret_and_a_lost_key_stops_no_edit(session, good):
    session.execute(text(f"UPDATE {SCHEMA}.infrastructure SET encrypted_settings = 'v1:gone:x'"))
    session.execute(text(f"UPDATE {SCHEMA}.api_keys SET encrypted_value = 'v1:gone:x'"))
    session.commit()
    session.expunge_all()
    door = DatabaseService(session)
    assert door.list_api_keys(1)[0].name == "aws/token"
    assert door.list_infrastructure().items
    assert door.get_infrastructure(1).owner.username == "anna"
    assert door.get_deployment(1).infrastructure.name == "here"
    assert door.edit_infrastructure(1, region="eu").region == "eu"


def test_a_disabled_user_keeps_the_history_and_loses_the_rest(session, good, anna):
    DatabaseService(session).set_user_active(anna.id, False)
    session.execute(update(User).where(User.id == anna.id).values(last_login_at=None))
    with pytest.raises(PermissionDenied, match="anna is disabled"):
        DatabaseService(session, actor=anna).list_users()
    assert DatabaseService(session).list_deployments(user_id=anna.id).items
