"""Lists come in pages by key, say what they load, and open no secret on the way."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, insert, inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from db.errors import AlreadyExists, InvalidInput, NotFound
from db.models import APIKey, Application, Deployment, Infrastructure, MonitoringAlert, User
from db.repositories import (
    APIKeyRepository,
    ApplicationRepository,
    DeploymentLogRepository,
    DeploymentRepository,
    InfrastructureRepository,
    MonitoringAlertRepository,
    ProcessRepository,
    TickRepository,
    UserRepository,
)
from db.repositories.base import MAX_LIMIT
from db.states import DeploymentStatus


@pytest.fixture
def anna(session: Session) -> User:
    made = User(username="anna", email="anna@example.org", hashed_password="hash")
    session.add(made)
    session.flush()
    return made


@pytest.fixture
def ten(session: Session, anna: User) -> list[Deployment]:
    """Ten deployments of anna's, every third a success, the others failed."""
    application, place = Application(name="shop", command=["x"]), Infrastructure(name="here", owner_id=anna.id)
    session.add_all([application, place])
    session.flush()
    made = [
        Deployment(
            user_id=anna.id, application_id=application.id, infrastructure_id=place.id, version=f"v{n}",
            status="failed" if n % 3 else "success", error_message="no" if n % 3 else None, finished_at=anna.created_at,
        )
        for n in range(10)
    ]  # fmt: skip
    session.add_all(made)
    session.commit()
    session.expunge_all()
    return made


def test_pages_follow_each_other_without_gap_or_repeat(session, ten):
    repository = DeploymentRepository(session)

    @given(st.integers(-5, 15))
    def walk(limit: int) -> None:
        seen, before, pages = [], None, 0
        while True:
            page = repository.list_(limit=limit, before=before)
            assert 0 < len(page.items) <= max(1, limit)
            seen += [row.id for row in page.items]
            pages += 1
            before = page.next
            if before is None:
                break
        assert seen == [row.id for row in reversed(ten)]
        assert pages == -(-10 // max(1, limit))

    walk()


def test_a_row_that_comes_while_somebody_reads_disturbs_no_page(session, ten):
    repository = DeploymentRepository(session)
    first = repository.list_(limit=4)
    keys = ("user_id", "application_id", "infrastructure_id")
    session.add(Deployment(version="new", **{key: getattr(ten[0], key) for key in keys}))
    session.flush()
    second = repository.list_(limit=4, before=first.next)
    assert [row.version for row in first.items] == ["v9", "v8", "v7", "v6"]
    assert [row.version for row in second.items] == ["v5", "v4", "v3", "v2"]


def test_no_page_is_longer_than_the_limit_that_all_share(session):
    session.execute(insert(Application), [{"name": f"a{n}", "command": []} for n in range(MAX_LIMIT + 1)])
    page = ApplicationRepository(session).list_(limit=10**9)
    assert len(page.items) == MAX_LIMIT
    assert page.next is not None


def test_an_empty_list_has_no_next_page(session):
    page = ApplicationRepository(session).list_()
    assert (list(page.items), page.next) == ([], None)


def test_the_example_of_the_documentation_runs_as_written(session, ten):
    user_repo = UserRepository(session)
    user = user_repo.get_by_username("anna")
    deployment_repo = DeploymentRepository(session)
    deployments = deployment_repo.get_user_deployments(user_id=user.id, status="success")
    assert [deployment.version for deployment in deployments] == ["v9", "v6", "v3", "v0"]
    assert len(deployment_repo.get_user_deployments(user.id)) == 10
    assert [row.version for row in deployment_repo.get_user_deployments(user.id, "failed", limit=2)] == ["v8", "v7"]
    assert deployment_repo.get_user_deployments(user.id, "cancelled") == []
    with pytest.raises(InvalidInput, match="'done' is none of: pending"):
        deployment_repo.get_user_deployments(user.id, "done")


def test_names_and_addresses_are_found_whatever_their_case(session, anna):
    users = UserRepository(session)
    assert users.get_by_username("ANNA") is anna
    assert users.get_by_email("Anna@Example.ORG") is anna
    assert users.get_by_username("ann_") is None
    session.add(Application(name="Shop", command=[]))
    assert ApplicationRepository(session).get_by_name("sHOP").name == "Shop"


def test_a_list_does_not_load_what_is_encrypted_and_says_so_when_asked(session, anna):
    session.add(APIKey(user_id=anna.id, service_name="aws", key_name="token", encrypted_value="value"))
    session.add(Infrastructure(name="here", owner_id=anna.id, encrypted_settings="value"))
    session.commit()
    session.expunge_all()
    (key,) = APIKeyRepository(session).list_().items
    (place,) = InfrastructureRepository(session).list_().items
    for row, column in ((key, "encrypted_value"), (place, "encrypted_settings")):
        assert column in inspect(row).unloaded
        with pytest.raises(InvalidRequestError, match="raiseload"):
            getattr(row, column)
        assert "value=" not in repr(row)


def test_a_list_of_users_does_not_load_their_passwords(session, anna):
    session.commit()
    session.expunge_all()
    (user,) = UserRepository(session).list_().items
    assert "hashed_password" in inspect(user).unloaded


def test_relations_load_only_where_a_method_says_so(session, ten):
    repository = DeploymentRepository(session)
    bare = repository.require(ten[0].id)
    for relation in ("user", "application", "infrastructure", "job"):
        with pytest.raises(InvalidRequestError, match="raise"):
            getattr(bare, relation)
    session.expunge_all()
    full = repository.get_with_relations(ten[0].id)
    assert (full.user.username, full.application.name, full.infrastructure.name, full.job) == (
        "anna",
        "shop",
        "here",
        None,
    )
    page = repository.list_with_names(limit=1)
    assert page.items[0].application.name == "shop"
    assert "encrypted_settings" in inspect(page.items[0].infrastructure).unloaded
    assert repository.get_with_relations(10**6) is None


def test_the_newest_deployment_of_a_place_is_found_by_its_statuses(session, ten):
    repository = DeploymentRepository(session)
    key = (ten[0].application_id, ten[0].infrastructure_id)
    assert repository.latest(*key).version == "v9"
    assert repository.latest(*key, DeploymentStatus.FAILED, DeploymentStatus.ERROR).version == "v8"
    assert repository.latest(*key, DeploymentStatus.CANCELLED) is None
    assert repository.latest(key[0], key[1] + 1) is None


def test_a_move_compares_and_sets(session, ten):
    repository = DeploymentRepository(session)
    failed = ten[1].id
    assert repository.move(failed, [DeploymentStatus.SUCCESS], DeploymentStatus.ROLLED_BACK) is None
    moved = repository.move(failed, [DeploymentStatus.FAILED], DeploymentStatus.ERROR, error_message="why")
    assert (moved.id, moved.status, moved.error_message) == (failed, "error", "why")
    assert repository.move(10**6, list(DeploymentStatus), DeploymentStatus.ERROR) is None
    assert repository.status(failed) == "error"
    assert repository.status(10**6) == "gone"


def test_a_log_is_followed_by_a_cursor(session, ten):
    logs = DeploymentLogRepository(session)
    chunk = {"deployment_id": ten[0].id, "attempt": 1, "stream": "stdout"}
    logs.append([chunk | {"content": f"{n}\n"} for n in range(5)])
    logs.append([chunk | {"deployment_id": ten[1].id, "content": "other\n"}])
    first = logs.after(ten[0].id, limit=2)
    rest = logs.after(ten[0].id, first[-1].id)
    assert [row.content for row in [*first, *rest]] == [f"{n}\n" for n in range(5)]
    assert logs.after(ten[0].id, rest[-1].id) == []


def test_a_deployment_is_found_by_its_job(session, ten):
    assert DeploymentRepository(session).get_by_job(uuid4()) is None


def test_pages_by_number_go_on_to_the_end_and_count_only_when_asked(session, ten):
    repository = DeploymentRepository(session)
    pages = [repository.page(number=n, size=4) for n in (1, 2, 3)]
    assert [[row.version for row in page.items] for page in pages] == [
        ["v9", "v8", "v7", "v6"],
        ["v5", "v4", "v3", "v2"],
        ["v1", "v0"],
    ]
    assert [(page.number, page.has_next, page.total) for page in pages] == [
        (1, True, None),
        (2, True, None),
        (3, False, None),
    ]
    failed = repository.page(Deployment.status == "failed", size=2, count=True)
    assert ([row.version for row in failed.items], failed.total) == (["v8", "v7"], 6)
    assert list(repository.page(number=9).items) == []
    for number in (0, -1, 10**9, 1.5, "1", None, True):
        with pytest.raises(InvalidInput, match="number of a page"):
            repository.page(number=number)


def test_nothing_is_counted_unless_it_is_asked_for(session, ten):
    sent: list[str] = []
    event.listen(session.get_bind(), "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    repository = DeploymentRepository(session)
    repository.list_()
    repository.page()
    assert [statement for statement in sent if "count(" in statement] == []
    repository.page(count=True)
    assert len([statement for statement in sent if "count(" in statement]) == 1


def test_what_is_wanted_with_a_row_is_loaded_although_the_session_knows_the_row(session, ten):
    repository = DeploymentRepository(session)
    known = repository.require(ten[0].id)
    assert repository.get_with_relations(ten[0].id) is known
    assert known.application.name == "shop"
    assert UserRepository(session).get_with_relations(ten[0].user_id).api_keys == []
    place = InfrastructureRepository(session).get_with_relations(ten[0].infrastructure_id)
    assert place.owner.username == "anna"
    assert [row.name for row in InfrastructureRepository(session).get_user_infrastructure(ten[0].user_id)] == ["here"]


@pytest.mark.parametrize("key", [None, "1", 1.0, True, b"1", object()])
def test_what_is_no_key_is_refused_before_the_database_is_asked(session, key):
    for repository in (UserRepository, DeploymentRepository, MonitoringAlertRepository):
        with pytest.raises(InvalidInput, match="is a number"):
            repository(session).require(key)


def test_one_alert_is_open_per_fingerprint_and_found_by_where_it_stands(session, ten):
    repository = MonitoringAlertRepository(session)
    fields = {"alert_type": "t", "severity": "low", "title": "t", "fired_at": ten[0].finished_at}
    old = repository.add(MonitoringAlert(fingerprint="f", application_id=ten[0].application_id, **fields))
    with pytest.raises(AlreadyExists, match="an alert with this open exists already"):
        repository.add(MonitoringAlert(fingerprint="f", **fields))
    assert repository.get_open("f") is old
    assert repository.resolve(old.id).status == "resolved"
    assert repository.resolve(old.id) is None
    assert repository.acknowledge(old.id, None) is None
    assert repository.get_open("f") is None
    new = repository.add(MonitoringAlert(fingerprint="f", infrastructure_id=ten[0].infrastructure_id, **fields))
    assert list(repository.search().items) == [new, old]
    assert list(repository.search(status="firing").items) == [new]
    assert list(repository.search(application_id=ten[0].application_id).items) == [old]
    assert list(repository.search(infrastructure_id=ten[0].infrastructure_id, status="resolved").items) == []
    with pytest.raises(InvalidInput, match="'open' is none of"):
        repository.search(status="open")


def test_processes_and_ticks_are_seen(session, sql):
    sql("INSERT INTO processes (id, kind, name, host, pid, seen_at) VALUES ('p1', 'worker', 'w@h', 'h', 1, now())")
    sql("INSERT INTO processes (id, kind, name, host, pid, seen_at) VALUES ('p2', 'beat', 'b@h', 'h', 2, now())")
    sql(
        "INSERT INTO processes (id, kind, name, host, pid, seen_at) VALUES ('p3', 'beat', 'b@h', 'h', 3, '2000-01-01Z')"
    )
    processes = ProcessRepository(session)
    assert [process.id for process in processes.list_("beat")] == ["p2"]
    assert {process.id for process in processes.list_()} == {"p1", "p2"}
    assert processes.require("p3").pid == 3
    with pytest.raises(NotFound, match="there is no process 'p4'"):
        processes.require("p4")
    ticks = TickRepository(session)
    assert ticks.due("alerts", timedelta(seconds=10))
    assert [tick.name for tick in ticks.list_()] == ["alerts"]
    assert ticks.get("alerts").last_run_at is not None
