"""Deployments: asked for whole or not at all, cancelled and tried again truthfully, frozen with their secrets."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from db import frozen
from db.encryption import new_key
from db.errors import Conflict, DecryptionError, InvalidInput, NotFound, PermissionDenied
from db.models import Deployment, Job
from db.repositories import ApplicationRepository, AuditLogRepository, DeploymentRepository
from db.service import DatabaseService
from db.services import applications, deployments, infrastructure, plans, secrets, waiting
from db.states import DEPLOYMENT_TRANSITIONS, DeploymentStatus, JobState
from tests.conftest import SCHEMA
from tests.db.services.conftest import encryption_key, one_line, rows

D = DeploymentStatus


def create(session, anna, shop, here, version="v1", **fields):
    return deployments.create(
        session,
        **{"user_id": anna.id, "application_id": shop.id, "infrastructure_id": here.id, "version": version} | fields,
    )


def status(session: Session, deployment: Deployment) -> str:
    session.expire(deployment)
    return deployment.status.value


def test_the_example_of_the_documentation_runs_as_written(session, anna, shop, here):
    deployment = DatabaseService(session).create_deployment(
        user_id=anna.id, application_id=shop.id, infrastructure_id=here.id, version="v1.2.3"
    )
    session.commit()
    assert (deployment.version, deployment.status) == ("v1.2.3", "pending")


def test_a_deployment_and_its_job_are_written_together(session, anna, shop, here):
    applications.edit(session, application=shop, configuration={"timeout_seconds": 77})
    made = create(session, anna, shop, here, priority=3)
    session.commit()
    job = session.get(Job, made.job_id)
    assert (job.task, job.queue, job.kwargs) == ("tasks.deployments.run", "deployments", {"deployment_id": made.id})
    assert (job.state, job.priority, job.timeout_seconds, job.idempotent) == ("queued", 3, 77, False)
    assert job.lock_key == f"infrastructure:{here.id}/application:{shop.id}"
    create(session, anna, shop, here, "v2")
    session.rollback()
    assert (rows(session)["deployments"], rows(session)["jobs"]) == (1, 1)


@pytest.mark.parametrize(
    "version", ["v1", "1.2.3-rc.1+build_7", "feature/x", "sha256:abc", "a@b", "x" * 200, "a..b", "v"]
)
def test_a_version_may_look_like_this(version):
    assert deployments.check(deployments.DeploymentSpec, {"version": version}).version == version


def test_a_version_that_could_do_harm_is_one_line_with_nothing_written(session, anna, shop, here):
    before = rows(session)
    for version in (
        "", "-rf", "--help", "..", "../etc", "v1/../../etc", "v1/..", "/etc", ".hidden", "v 1", "v1\n", "v1\0",
        "v1\x1b[31m", "\u202ev1", "v\u00fc", "\ud800", "x" * 201, "x" * 10_000, "v1;id", "$(id)", "v1'", None,
        7, ["v1"],
    ):  # fmt: skip
        with pytest.raises(InvalidInput) as error:
            create(session, anna, shop, here, version)
        message = one_line(error)
        assert message.startswith("version: ")
        assert len(message) < 200
        assert "\x1b" not in message
    session.commit()
    assert rows(session) == before


def test_what_is_not_there_or_malformed_leaves_nothing(session, anna, shop, here):
    before = rows(session)
    for wrong, kind, said in (
        ({"user_id": 42}, NotFound, "there is no user 42"),
        ({"application_id": 42}, NotFound, "there is no application 42"),
        ({"infrastructure_id": 10**30}, NotFound, "there is no infrastructure 1000"),
        ({"priority": 10}, InvalidInput, "priority"),
        ({"priority": -1}, InvalidInput, "priority"),
    ):
        with pytest.raises(kind) as error:
            create(session, anna, shop, here, **wrong)
        assert one_line(error).startswith(said)
    session.execute(text(f'UPDATE {SCHEMA}.applications SET configuration = \'{{"from": "a later release"}}\''))
    session.expire_all()
    with pytest.raises(InvalidInput) as error:
        create(session, anna, shop, here)
    assert one_line(error).startswith("configuration.from")
    session.commit()
    assert rows(session) == before | {"audit_logs": before["audit_logs"] + 1}


def test_an_application_removed_in_the_meantime_is_a_conflict_and_no_half_deployment(session, anna, shop, here):
    session.commit()
    with Session(session.get_bind()) as other:
        applications.remove(other, application=ApplicationRepository(other).require(shop.id))
        other.commit()
    with pytest.raises(Conflict) as error:  # the session still knows the application
        create(session, anna, shop, here)
    assert one_line(error) == "this deployment needs something that has just been removed"
    session.commit()
    assert (rows(session)["deployments"], rows(session)["jobs"]) == (0, 0)


def test_a_viewer_may_not_deploy_and_nobody_for_somebody_else(session, person, anna, shop, here, asked):
    viewer, operator, admin = person("vic", "viewer"), person("ben"), person("root", "admin")
    before = rows(session)
    for deed in (
        lambda: create(session, viewer, shop, here),
        lambda: create(session, viewer, shop, here, actor=admin),
        lambda: deployments.retry(session, deployment_id=asked.id, actor=viewer),
        lambda: deployments.cancel(session, deployment_id=asked.id, actor=viewer),
        lambda: DatabaseService(session, viewer).update_deployment_status(asked.id, "running"),
    ):
        with pytest.raises(PermissionDenied, match="needs the role operator; vic is viewer"):
            deed()
    with pytest.raises(PermissionDenied, match="needs the role admin; ben is operator"):
        create(session, anna, shop, here, actor=operator)
    assert rows(session) == before
    create(session, anna, shop, here, actor=admin)
    create(session, anna, shop, here, actor=anna)
    anna.is_active = False
    with pytest.raises(PermissionDenied, match="anna is disabled"):
        create(session, anna, shop, here)


def test_a_waiting_deployment_is_cancelled_at_once(session, asked):
    assert deployments.cancel(session, deployment_id=asked.id, reason="not today") is JobState.CANCELLED
    session.commit()
    assert status(session, asked) == "cancelled"
    assert asked.error_message == "not today"
    assert asked.finished_at is not None


def test_a_running_deployment_is_asked_to_end(session, asked, run):
    run(asked, None)
    assert deployments.cancel(session, deployment_id=asked.id) is JobState.RUNNING
    session.commit()
    assert status(session, asked) == "running"
    assert session.get(Job, asked.job_id).cancel_requested_at is not None


def test_an_ended_deployment_cannot_be_cancelled_and_says_why(session, asked, run):
    run(asked)
    with pytest.raises(Conflict) as error:
        deployments.cancel(session, deployment_id=asked.id)
    assert one_line(error) == f"deployment {asked.id} is success; there is nothing to cancel"
    with pytest.raises(NotFound):
        deployments.cancel(session, deployment_id=asked.id + 1)


@pytest.mark.parametrize(
    ("outcome", "ended"), [("failed", D.FAILED), ("timeout", D.FAILED), ("interrupted", D.ERROR), ("lost", D.ERROR)]
)
def test_a_deployment_that_did_not_succeed_can_be_tried_again(session, asked, run, outcome, ended):
    first = asked.job_id
    run(asked, outcome, "it did not work")
    assert asked.status is ended
    assert asked.error_message.endswith("it did not work")
    deployments.retry(session, deployment_id=asked.id)
    session.commit()
    assert (asked.status, asked.error_message, asked.started_at, asked.finished_at) == (D.PENDING, None, None, None)
    assert asked.job_id != first
    assert session.get(Job, asked.job_id).state is JobState.QUEUED
    run(asked)
    assert asked.status is D.SUCCESS


def test_only_an_ended_deployment_that_did_not_succeed_can_be_tried_again(session, asked, run):
    for outcome, now in (("", "pending"), (None, "running")):
        if outcome is None:
            run(asked, None)
        with pytest.raises(Conflict) as error:
            deployments.retry(session, deployment_id=asked.id)
        assert one_line(error) == f"deployment {asked.id} is {now}; only one that did not succeed can be tried again"
    assert rows(session)["jobs"] == 1
    with pytest.raises(NotFound):
        deployments.retry(session, deployment_id=asked.id + 1)


def test_of_two_who_try_again_one_does(session, asked, run):
    run(asked, "failed", "no")
    session.commit()
    with Session(session.get_bind()) as other:
        DeploymentRepository(other).require(asked.id)
        deployments.retry(session, deployment_id=asked.id)
        session.commit()
        with pytest.raises(Conflict, match="is pending"):
            deployments.retry(other, deployment_id=asked.id)
        other.commit()
    assert rows(session)["jobs"] == 2


class TestUpdateStatus:
    """For deployments that something outside runs: their job has ended, or there is none."""

    @pytest.fixture
    def outside(self, session, asked) -> Deployment:
        session.execute(update(Deployment).values(job_id=None))
        session.commit()
        session.refresh(asked)
        return asked

    def put(self, session, deployment, to):
        ended = {"finished_at": text("now()")} if to.is_final else {"finished_at": None}
        session.execute(update(Deployment).values(status=to, error_message="x", **ended))
        session.refresh(deployment)

    def test_it_follows_the_table_of_transitions(self, session, outside):
        for came_from in D:
            for to in D:
                self.put(session, outside, came_from)
                allowed = to in DEPLOYMENT_TRANSITIONS[came_from] and not (to is D.PENDING and came_from.is_final)
                if allowed:
                    moved = deployments.update_status(
                        session, deployment_id=outside.id, status=to.value, error_message="why"
                    )
                    assert (moved.status, moved.finished_at is None) == (to, not to.is_final)
                else:
                    with pytest.raises(Conflict) as error:
                        deployments.update_status(session, deployment_id=outside.id, status=to, error_message="why")
                    assert (
                        one_line(error) == f"deployment {outside.id} is {came_from.value} and cannot become {to.value}"
                    )

    def test_a_failure_needs_a_reason_and_a_word_must_be_known(self, session, outside):
        for to in ("failed", "error"):
            with pytest.raises(InvalidInput, match=f"{to} needs an error message"):
                deployments.update_status(session, deployment_id=outside.id, status=to)
        with pytest.raises(InvalidInput) as error:
            deployments.update_status(session, deployment_id=outside.id, status="done")
        assert one_line(error).startswith("'done' is no status; known are: pending, running, success")
        moved = deployments.update_status(
            session, deployment_id=outside.id, status="failed", error_message="a\0b\ud800"
        )
        assert moved.error_message == "a\N{REPLACEMENT CHARACTER}b?"

    def test_one_whose_job_is_alive_follows_its_job(self, session, asked, run):
        for state in ("queued", "running"):
            if state == "running":
                run(asked, None)
            with pytest.raises(Conflict) as error:
                deployments.update_status(session, deployment_id=asked.id, status="success")
            assert one_line(error) == f"deployment {asked.id} follows its job, which is {state}"

    def test_a_success_can_be_rolled_back_and_keeps_its_end(self, session, asked, run):
        run(asked)
        ended = asked.finished_at
        moved = deployments.update_status(session, deployment_id=asked.id, status="rolled_back")
        assert (moved.status, moved.finished_at) == (D.ROLLED_BACK, ended)

    def test_the_loser_of_a_race_learns_what_it_is_now(self, session, outside):
        with Session(session.get_bind()) as other:
            DeploymentRepository(other).require(outside.id)
            deployments.update_status(session, deployment_id=outside.id, status="cancelled")
            session.commit()
            with pytest.raises(Conflict, match="is cancelled and cannot become running"):
                deployments.update_status(other, deployment_id=outside.id, status="running")


class TestFreeze:
    """What one attempt is to do, resolved and with its secrets open."""

    def freeze(self, session, deployment, **fields):
        session.commit()
        session.expunge_all()
        return plans.freeze(
            session,
            **{"deployment_id": deployment.id, "job_id": deployment.job_id, "attempt": 2, "fence": 9} | fields,
        )

    @pytest.fixture
    def ready(self, session, person, anna, shop, here, asked) -> Deployment:
        """Ben's deployment of an application that wants a secret, on a place of anna's."""
        secrets.store(session, user_id=anna.id, service_name="aws", key_name="token", value="annas-value")
        ben = person("ben")
        secrets.store(session, user_id=ben.id, service_name="aws", key_name="token", value="bens-value")
        applications.edit(
            session, application=shop, working_directory="/srv", health_check_url="http://host/",
            configuration={
                "environment": {"A": "application", "TOKEN": "overridden"}, "secrets": {"TOKEN": "aws/token"},
                "health": {"attempts": 4}, "promote": ["switch"], "abort": ["clean"],
            },
        )  # fmt: skip
        infrastructure.edit(session, infrastructure=here, settings={"environment": {"A": "place", "B": "place"}})
        return create(session, ben, shop, here, "v7")

    def test_it_opens_the_secrets_of_the_places_owner_and_records_each(self, session, ready, shop):
        plan = self.freeze(session, ready)
        environment = plan.body["environment"]
        assert (environment["TOKEN"], plan.masked) == ("annas-value", ("annas-value",))
        (entry,) = AuditLogRepository(session).search(action="secret.opened").items
        assert entry.details == {"name": "aws/token", "deployment_id": ready.id}
        assert "annas-value" not in repr(plan)

    def test_it_resolves_the_rest(self, session, ready):
        body = self.freeze(session, ready).body
        environment = body["environment"]
        assert (environment["A"], environment["B"]) == ("application", "place")
        assert {name: value for name, value in environment.items() if name.startswith("OPS_")} == {
            "OPS_VERSION": "v7", "OPS_DEPLOYMENT_ID": str(ready.id), "OPS_APPLICATION": "shop",
            "OPS_INFRASTRUCTURE": "here", "OPS_ENVIRONMENT": "dev", "OPS_JOB_ID": str(ready.job_id),
            "OPS_ATTEMPT": "2", "OPS_FENCE": "9",
        }  # fmt: skip
        assert (body["argv"], body["cwd"]) == (["deploy", "it"], "/srv")
        assert body["health"] == {"url": "http://host/", "attempts": 4, "interval_seconds": 1.0, "timeout_seconds": 2.0}
        assert (body["promote"], body["abort"]) == (["switch"], ["clean"])

    def test_the_version_is_never_in_the_argv_also_with_a_shell(self, session, anna, shop, here):
        applications.edit(session, application=shop, command=["echo $OPS_VERSION"], configuration={"shell": True})
        body = self.freeze(session, create(session, anna, shop, here)).body
        assert body["argv"] == ["/bin/sh", "-c", "echo $OPS_VERSION"]
        assert body["health"] is None

    def test_a_later_edit_changes_neither_what_waits_nor_what_is_tried_again(self, session, asked, shop, here, run):
        run(asked, "failed", "no")
        applications.edit(session, application=shop, command=["other"], configuration={"timeout_seconds": 7})
        infrastructure.edit(session, infrastructure=here, settings={"environment": {"NEW": "1"}})
        before = asked.digest
        again = deployments.retry(session, deployment_id=asked.id)
        body = self.freeze(session, again).body
        assert (body["argv"], body["environment"].get("NEW")) == (["deploy", "it"], None)
        assert again.digest == before
        assert session.get(Job, again.job_id).timeout_seconds == 3600

    def test_a_deployment_of_an_older_release_does_what_the_application_says_now(self, session, asked, shop):
        session.execute(update(Deployment).values(frozen=None, digest=None))
        applications.edit(session, application=shop, command=["other"])
        assert self.freeze(session, asked).body["argv"] == ["other"]

    def test_what_is_frozen_has_a_digest_of_what_it_says_and_no_secret(self, session, ready, anna, shop, here):
        stored = session.scalar(select(Deployment.frozen).where(Deployment.id == ready.id))
        assert stored["configuration"]["secrets"] == {"TOKEN": "aws/token"}
        assert "annas-value" not in str(stored)
        assert create(session, anna, shop, here, "v8").digest == ready.digest == frozen.digest(stored)
        applications.edit(session, application=shop, command=["deploy", "more"])
        assert create(session, anna, shop, here, "v8").digest != ready.digest

    def test_what_was_changed_behind_its_digest_is_not_done(self, session, ready, asked, run):
        """The trail knows what a deployment was to do by its digest alone."""
        run(asked, "failed", "no")
        session.execute(update(Deployment).values(frozen=Deployment.frozen.op("||")({"command": ["rm", "all"]})))
        with pytest.raises(Conflict, match="was changed after it was asked for"):
            self.freeze(session, ready)
        with pytest.raises(Conflict, match="was changed after it was asked for"):
            deployments.retry(session, deployment_id=asked.id)

    def test_a_missing_secret_opens_none_and_leaves_no_entry(self, session, ready, anna):
        secrets.remove(session, user_id=anna.id, name="aws/token")
        with pytest.raises(NotFound, match="there is no secret aws/token"):
            self.freeze(session, ready)
        session.rollback()
        assert AuditLogRepository(session).search(action="secret.opened").items == []

    def test_a_secret_that_does_not_open_is_an_error_without_its_value(self, session, ready):
        session.commit()
        with encryption_key(new_key()), pytest.raises(DecryptionError) as error:
            self.freeze(session, ready)
        assert "annas-value" not in one_line(error)

    def test_a_deployment_that_has_another_job_by_now_is_not_run(self, session, asked):
        with pytest.raises(Conflict, match="has another job by now"):
            self.freeze(session, asked, job_id=uuid4())
        with pytest.raises(NotFound, match="there is no deployment 42"):
            self.freeze(session, asked, deployment_id=42)


def test_output_is_stored_in_order(session, asked):
    deployments.append_log(session, deployment_id=asked.id, attempt=1, pieces=[("stdout", "a\n"), ("stderr", "b\n")])
    deployments.append_log(session, deployment_id=asked.id, attempt=1, pieces=[])
    deployments.append_log(session, deployment_id=asked.id, attempt=2, pieces=[("platform", "c\n")])
    found = session.execute(text(f"SELECT attempt, stream, content FROM {SCHEMA}.deployment_logs ORDER BY id")).all()
    assert [tuple(row) for row in found] == [(1, "stdout", "a\n"), (1, "stderr", "b\n"), (2, "platform", "c\n")]


def test_the_end_of_a_job_that_retention_removed_leaves_its_deployment(session, asked, run):
    run(asked)
    session.execute(text(f"DELETE FROM {SCHEMA}.jobs"))
    session.commit()
    session.refresh(asked)
    assert (asked.status, asked.job_id) == (D.SUCCESS, None)
    assert session.scalars(select(Job)).all() == []


def test_what_begins_while_somebody_looks_is_not_said_to_wait_for_itself(session, asked, run) -> None:
    seen = session.get(Job, asked.job_id)
    assert waiting.why(session, seen) == "no worker serves queue deployments"
    run(asked, None)
    assert seen.state is JobState.QUEUED, "as it was read"
    assert waiting.why(session, seen) is None
