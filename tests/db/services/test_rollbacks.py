"""The way back is a deployment of its own: of what has succeeded there, as it was then; it says what it replaces."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from db.models import AuditLog, Deployment, Job
from db.service import DatabaseService
from db.services import applications, deployments, infrastructure, plans, rollbacks
from db.states import DeploymentStatus
from tests.db.services.conftest import one_line, rows

D = DeploymentStatus
Put = Callable[..., Deployment]


@pytest.fixture
def put(session: Session, anna, shop, here, run) -> Put:
    """Deploy a version, up to an outcome (None: it runs on; "queued": it waits)."""

    def deploy(version: str, outcome: str | None = "ok", error: str | None = "no", **fields) -> Deployment:
        made = deployments.create(
            session,
            **{"user_id": anna.id, "application_id": shop.id, "infrastructure_id": here.id, "version": version}
            | fields,
        )
        session.commit()
        if outcome != "queued":
            run(made, outcome, None if outcome == "ok" else error)
        return made

    return deploy


@pytest.fixture
def back(session: Session, anna, shop, here, run) -> Put:
    """Roll back, up to an outcome."""

    def roll(version: str | None = None, outcome: str | None = "ok") -> Deployment:
        made = rollbacks.create(
            session, user_id=anna.id, application_id=shop.id, infrastructure_id=here.id, version=version
        )
        session.commit()
        run(made, outcome, None if outcome == "ok" else "no")
        return made

    return roll


def test_it_goes_back_to_what_was_there_before_and_says_so(session, put, back):
    put("v1")
    second = put("v2")
    made = back()
    session.refresh(second)
    assert (made.version, made.status, made.rollback_deployment_id) == ("v1", D.SUCCESS, second.id)
    assert second.status is D.ROLLED_BACK
    assert second.finished_at is not None


def test_what_it_replaces_is_rolled_back_by_its_success_and_not_before(session, put, back):
    put("v1")
    second = put("v2")
    made = back(outcome=None)
    session.refresh(second)
    assert (made.status, second.status) == (D.RUNNING, D.SUCCESS)
    third = put("v3", "queued")
    deployments.cancel(session, deployment_id=third.id)
    session.commit()


def test_a_rollback_that_fails_leaves_what_it_was_to_replace_as_it_is(session, put, back):
    put("v1")
    second = put("v2")
    made = back(outcome="failed")
    session.refresh(second)
    assert (made.status, second.status) == (D.FAILED, D.SUCCESS)


def test_both_moves_are_in_the_trail_with_the_same_context(session, put, back):
    put("v1")
    second = put("v2")
    made = back()
    query = select(AuditLog).where(AuditLog.resource_type == "deployment").order_by(AuditLog.id.desc()).limit(2)
    found = {entry.resource_id: entry for entry in session.scalars(query)}
    assert found[str(second.id)].changes["status"] == ["success", "rolled_back"]
    assert found[str(made.id)].changes["status"] == ["running", "success"]
    assert found[str(second.id)].task_id == found[str(made.id)].task_id == made.job_id


def test_after_a_failure_it_goes_to_the_last_that_succeeded(session, put, back):
    put("v1")
    put("v2")
    bad = put("v3", "failed")
    made = back()
    session.refresh(bad)
    assert (made.version, made.rollback_deployment_id, bad.status) == ("v2", bad.id, D.FAILED)


def test_one_after_the_other_leads_further_back_and_never_to_and_fro(put, back):
    for version in ("v1", "v2", "v3"):
        put(version)
    assert [back().version, back().version] == ["v2", "v1"]
    with pytest.raises(NotFound, match="no way back: nothing else has succeeded there before"):
        back()


def test_what_was_cancelled_before_it_began_has_changed_nothing(session, put, back):
    put("v1")
    second = put("v2")
    third = put("v3", "queued")
    deployments.cancel(session, deployment_id=third.id)
    session.commit()
    assert back().rollback_deployment_id == second.id


def test_the_same_version_with_another_configuration_is_another_thing(session, put, back, shop, here):
    put("v1")
    applications.edit(session, application=shop, command=["deploy", "badly"])
    put("v1")
    infrastructure.edit(session, infrastructure=here, settings={"environment": {"PLACE": "new"}})
    made = back()
    body = plans.freeze(session, deployment_id=made.id, job_id=made.job_id, attempt=1, fence=1).body
    assert body["argv"] == ["deploy", "it"], "the application as it was then"
    assert body["environment"]["PLACE"] == "new", "the place as it is now"
    with pytest.raises(NotFound):
        back()


def test_a_version_is_named_only_where_it_has_succeeded(session, put, back, anna, shop):
    put("v1")
    put("v2")
    put("v3", "failed")
    put("v4")
    elsewhere = infrastructure.register(session, owner_id=anna.id, name="elsewhere")
    put("v9", infrastructure_id=elsewhere.id)
    for version in ("v3", "v9", "v17"):
        with pytest.raises(NotFound, match=f"{version} has never succeeded there"):
            back(version)
    with pytest.raises(Conflict, match="v4 is what runs there since deployment"):
        back("v4")
    with pytest.raises(InvalidInput, match="version: "):
        back("--force")
    assert back("v1").version == "v1"
    assert back("v4").version == "v4", "rolled back, and it had succeeded"


def test_behind_one_that_waits_or_runs_it_is_refused_and_leaves_nothing(session, put, back):
    put("v1")
    put("v2")
    waits = put("v3", "queued")
    before = rows(session)
    with pytest.raises(Conflict, match=f"deployment {waits.id} is pending there") as refused:
        back()
    assert one_line(refused)
    session.rollback()
    assert rows(session) == before


def test_where_nothing_was_deployed_there_is_no_way_back(back):
    with pytest.raises(NotFound, match="nothing was ever deployed there"):
        back()


def test_it_takes_an_operator(session, put, anna, shop, here, person):
    put("v1")
    put("v2")
    ben = person("ben", "viewer")
    for actor, user in ((ben, ben), (person("carl"), anna)):
        with pytest.raises(PermissionDenied):
            DatabaseService(session, actor).rollback(user.id, shop.id, here.id)
    made = DatabaseService(session, anna).rollback(anna.id, shop.id, here.id)
    assert (made.version, session.get(Job, made.job_id).lock_key) == ("v1", deployments.lock_key(made))


def test_of_two_who_go_back_at_once_one_is_told_that_the_other_does(session, anna, shop, here, put, sql):
    put("v1")
    put("v2")
    where = {"user_id": anna.id, "application_id": shop.id, "infrastructure_id": here.id}
    first = rollbacks.create(session, **where)

    def second() -> None:
        with get_db_session() as other:
            rollbacks.create(other, **where)

    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(second)
        while not asked.done() and sql(waits) == [(0,)]:
            pass
        session.commit()
        with pytest.raises(Conflict, match=f"deployment {first.id} is pending there"):
            asked.result()
    assert sql("SELECT count(*) FROM deployments WHERE rollback_deployment_id IS NOT NULL") == [(1,)]
