"""One open alert per place that does not work, telling of its newest failure, until it works again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db.models import Deployment, MonitoringAlert
from db.services import applications, deployments, evaluation, failures, infrastructure


@pytest.fixture
def deploy(session, anna, shop, here, run) -> Callable[..., Deployment]:
    def to(outcome: str | None, error: str | None = None, place=here) -> Deployment:
        made = deployments.create(
            session, user_id=anna.id, application_id=shop.id, infrastructure_id=place.id, version="v1"
        )
        run(made, outcome, error)
        return made

    return to


def tick(session: Session) -> dict | None:
    changed = evaluation.evaluate(session, [failures.observe])
    session.commit()
    return changed


def found(session: Session) -> list[MonitoringAlert]:
    session.expire_all()
    return list(session.scalars(select(MonitoringAlert).order_by(MonitoringAlert.id)))


def resolve_by_hand(session: Session) -> None:
    session.execute(update(MonitoringAlert).values(status="resolved", resolved_at=func.clock_timestamp()))
    session.commit()


def test_a_failure_raises_one_alert_however_often_it_is_looked_at(session, deploy):
    failed = deploy("failed", "exit 3")
    assert tick(session) == {"raised": 1}
    assert tick(session) is None
    (alert,) = found(session)
    assert (alert.status, alert.alert_type, alert.severity) == ("firing", "deployment_failed", "medium")
    assert alert.title == f"deployment {failed.id} of shop v1 to here: failed"
    assert (alert.message, alert.deployment_id) == ("exit 3", failed.id)


def test_production_is_worse(session, deploy, here):
    infrastructure.edit(session, infrastructure=here, environment="production")
    deploy("lost", "nobody knows")
    tick(session)
    assert [(alert.severity, alert.title.rpartition(": ")[2]) for alert in found(session)] == [("high", "error")]


def test_success_and_what_has_not_ended_raise_nothing(session, deploy, asked):
    deployments.cancel(session, deployment_id=asked.id)
    deploy("ok")
    deploy(None)
    assert tick(session) is None


def test_a_later_success_resolves_it_and_an_earlier_one_does_not(session, deploy):
    deploy("ok")
    deploy("failed", "no")
    assert tick(session) == {"raised": 1}
    assert tick(session) is None
    deploy("ok")
    assert tick(session) == {"resolved": 1}
    assert tick(session) is None
    assert [(alert.status, alert.resolved_at is None) for alert in found(session)] == [("resolved", False)]


def test_a_failure_that_was_overtaken_before_anybody_looked_raises_nothing(session, deploy):
    deploy("failed", "no")
    deploy("ok")
    assert tick(session) is None


def test_an_alert_that_was_raised_after_the_recovery_is_resolved(session, deploy, monkeypatch):
    deploy("failed", "no")
    seen = failures.DeploymentRepository(session).failures()
    deploy("ok")  # between the look and the alert
    with monkeypatch.context() as late:
        late.setattr(failures.DeploymentRepository, "failures", lambda _: seen)
        assert tick(session) == {"raised": 1}
    assert tick(session) == {"resolved": 1}


def test_an_open_alert_tells_of_the_newest_failure(session, deploy):
    deploy("failed", "first")
    tick(session)
    second = deploy("failed", "second")
    assert tick(session) is None
    (alert,) = found(session)
    assert (alert.deployment_id, alert.message) == (second.id, "second")


def test_what_was_resolved_by_hand_stays_resolved_until_it_fails_again(session, deploy, run):
    deploy("failed", "first")
    tick(session)
    second = deploy("failed", "second")
    tick(session)
    resolve_by_hand(session)
    assert tick(session) is None
    deployments.retry(session, deployment_id=second.id)
    assert tick(session) is None
    run(second, "failed", "third")
    assert tick(session) == {"raised": 1}
    assert [alert.message for alert in found(session)] == ["second", "third"]


def test_a_retry_that_succeeds_resolves_it(session, deploy, run):
    failed = deploy("failed", "no")
    tick(session)
    deployments.retry(session, deployment_id=failed.id)
    run(failed)
    assert tick(session) == {"resolved": 1}


def test_an_older_deployment_tried_again_after_a_success_counts_by_its_new_end(session, deploy, run):
    old = deploy("failed", "no")
    deploy("ok")
    assert tick(session) is None
    deployments.retry(session, deployment_id=old.id)
    run(old, "failed", "again")
    assert tick(session) == {"raised": 1}


def test_each_application_and_place_has_its_own(session, deploy, anna, run):
    there = infrastructure.register(session, owner_id=anna.id, name="there")
    other = applications.register(session, name="other", command=["x"])
    deploy("failed", "no")
    deploy("failed", "no", place=there)
    run(
        deployments.create(
            session, user_id=anna.id, application_id=other.id, infrastructure_id=there.id, version="v1"
        ),
        "failed", "no",
    )  # fmt: skip
    assert tick(session) == {"raised": 3}
    deploy("ok", place=there)
    assert tick(session) == {"resolved": 1}
    assert [alert.status for alert in found(session)] == ["firing", "resolved", "firing"]
