"""What a driver says of hosts is stored before it goes on, by who holds the job, and settled at the end."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from db.connection import get_db_session, open_ledger
from db.ledger import host_key
from db.models import DeploymentHost, Host, Infrastructure
from db.service import DatabaseService
from db.services import deployments, rollouts
from db.states import HOST_TRANSITIONS, HostStatus
from tasks.effect import Effect
from tasks.masking import Masker
from tasks.reports import Reports
from tasks.supervisor import now
from tests.tasks.conftest import LONG, UP, python

WAITS = """
for number, status in enumerate(plan["statuses"], 1):
    tell(event="host", id=number, hosts=[{"name": "web1", "status": status, "message": plan.get("message")}])
    answer = json.loads(sys.stdin.readline())
    say(answer)
end("ok")
"""


class Job:
    """A claimed and begun job of a deployment to two hosts."""

    def __init__(self) -> None:
        with get_db_session() as session:
            service = DatabaseService(session)
            user = service.create_user_with_audit("ann", "ann@example.org", role="admin").id
            app = service.register_application("web", ["true"]).id
            infra = service.register_infrastructure("here", user).id
            session.add_all(
                Host(infrastructure_id=infra, name=f"web{n}", address="127.0.0.1", position=n) for n in (1, 2)
            )
            made = service.create_deployment(user, app, infra, "1")
            self.deployment, self.id = made.id, made.job_id
        self.token, self.attempt = uuid4(), 1
        self.ledger = open_ledger("test")
        claim = self.ledger.claim(self.id, deployments.RUN_TASK, self.token, worker="w", host=host_key(), holders=[])
        assert claim.verdict == "run"
        with get_db_session() as session:
            found = session.get(deployments.Deployment, self.deployment)
            place = session.get(Infrastructure, infra)
            rollouts.hosts_of(session, deployment=found, infrastructure=place, attempt=1)
        assert self.ledger.begin(self.id, 1, self.token, []) == "go"

    def finish(self, outcome: str) -> None:
        self.ledger.finish(self.id, 1, self.token, outcome, error=None if outcome == "ok" else "why")

    def hosts(self) -> dict[str, DeploymentHost]:
        with get_db_session() as session:
            return {row.name: row for row in rollouts.list_(session, deployment_id=self.deployment)}

    def say(self, *statuses: str, token=None, **more) -> list[bool]:
        with get_db_session() as session:
            return [
                rollouts.record(
                    session, deployment_id=self.deployment, job_id=self.id, attempt=1, token=token or self.token,
                    hosts=[{"name": "web1", "status": status} | more],
                )
                for status in statuses
            ]  # fmt: skip


@pytest.fixture
def job(database) -> Iterator[Job]:
    made = Job()
    yield made
    made.ledger.close()


def answers(job: Job, plan: dict, masker: Masker) -> list[str]:
    said = []
    with Effect() as effect:
        reports = Reports(job.deployment, job, masker, effect)
        effect.start(python(UP + WAITS), plan, lease_end=now() + LONG, timeout_end=now() + LONG, grace=LONG, report={})
        for event in effect.events(0.05):
            if event is not None and event["event"] == "host":
                reports.add(event)
            elif event is not None and event["event"] == "log" and "{" in event["text"]:
                said.append(event["text"])
    return said


def test_a_driver_goes_on_when_what_it_said_is_stored(job):
    plan = {"statuses": ["running", "switched", "healthy"], "message": "x hunter2 y"}
    assert answers(job, plan, Masker(["hunter2"])) == ["{'ack': 1}", "{'ack': 2}", "{'ack': 3}"]
    row = job.hosts()["web1"]
    assert (row.status, row.message) == (HostStatus.HEALTHY, "x [secret] y")
    assert row.started_at is not None
    assert row.finished_at is not None


def test_a_driver_learns_that_what_it_said_cannot_be_stored(job):
    plan = {"statuses": ["running", "pending", "nonsense", "healthy"]}
    expected = ["{'ack': 1}", "{'refuse': 2}", "{'refuse': 3}", "{'ack': 4}"]
    assert answers(job, plan, Masker([])) == expected


def test_only_the_attempt_that_holds_the_job_says_what_hosts_are(job):
    assert job.say("running", token=uuid4()) == [False]
    assert job.say("running") == [True]
    job.finish("failed")
    assert job.say("healthy") == [False]
    assert job.hosts()["web1"].status is HostStatus.UNKNOWN


def test_a_host_comes_to_a_status_only_as_the_table_says(job, sql):
    for before in HostStatus:
        for after in HostStatus:
            finished = "NULL" if before in ("pending", "running", "switched") else "now()"
            sql(f"UPDATE deployment_hosts SET status = '{before}', finished_at = {finished}")
            assert job.say(after) == [after in HOST_TRANSITIONS[before] or after == before], (before, after)


@pytest.mark.parametrize("outcome", ["failed", "lost", "interrupted", "timeout", "cancelled"])
def test_a_host_that_may_have_been_touched_is_unknown_when_nothing_else_came(job, outcome):
    job.say("running", message="switching")
    job.finish(outcome)
    hosts = job.hosts()
    assert hosts["web1"].status is HostStatus.UNKNOWN
    assert "nobody can tell" in hosts["web1"].message
    assert hosts["web2"].status is HostStatus.SKIPPED


def test_what_was_switched_is_known_after_a_loss(job):
    job.say("running", "switched", release="1-1-1", previous_release="0-0-0")
    job.finish("lost")
    row = job.hosts()["web1"]
    assert (row.status, row.release, row.previous_release) == (HostStatus.SWITCHED, "1-1-1", "0-0-0")


def test_a_success_means_that_all_hosts_are_healthy_though_the_last_reports_are_lost(job):
    job.say("running", "switched", release="1-1-1")
    job.finish("ok")
    assert job.hosts()["web1"].status is HostStatus.HEALTHY


def test_a_retry_of_the_failed_hosts_leaves_the_healthy_ones_alone(job):
    job.say("running", "healthy")
    job.finish("failed")
    with get_db_session() as session:
        again = deployments.retry(session, deployment_id=job.deployment, failed_hosts=True)
        place = session.get(Infrastructure, again.infrastructure_id)
        wanted = rollouts.hosts_of(session, deployment=again, infrastructure=place, attempt=1)
    assert [each["name"] for each in wanted] == ["web2"]
    assert job.hosts()["web1"].status is HostStatus.HEALTHY


def test_what_becomes_of_hosts_is_in_the_trail_with_its_job(job, sql):
    job.say("running", "switched")
    job.finish("lost")
    rows = sql("SELECT action, resource_id, task_id::text FROM audit_logs WHERE resource_type = 'deployment_host'")
    found = {row[1:] for row in rows}
    assert (f"{job.deployment}/web2", str(job.id)) in found  # settled by the end of the job
    assert f"{job.deployment}/web1" in {key for key, _ in found}
