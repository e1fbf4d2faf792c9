"""Deployments that failed, as conditions: one for each application and infrastructure, until it works again there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from db.alerting import Condition
from db.models import Deployment, MonitoringAlert
from db.repositories import DeploymentRepository
from db.services import rules
from db.services.evaluation import Alerts, Observation
from db.states import Environment, Severity

DEPLOYMENT_FAILED = "deployment_failed"


def observe(session: Session, known: Alerts) -> Observation:
    """The newest end of each application and infrastructure, where it is no success. An alert stays as it is while what
    it tells of is tried again."""
    rule = rules.effective(session, DEPLOYMENT_FAILED)
    types = frozenset({DEPLOYMENT_FAILED})
    if not rule.enabled:
        return Observation(types)
    found = {}
    for deployment, application, place, environment in DeploymentRepository(session).failures():
        made = _condition(rule, deployment, application, place, environment)
        if not _was_told(known.get(made.fingerprint), deployment):
            found[made.fingerprint] = made
    held = {
        fingerprint
        for fingerprint, alert in known.items()
        if alert.alert_type == DEPLOYMENT_FAILED and fingerprint not in found and not _is_over(session, alert)
    }
    return Observation(types, list(found.values()), frozenset(held))


def _condition(
    rule: rules.Rule, deployment: Deployment, application: str, place: str, environment: Environment
) -> Condition:
    assert deployment.finished_at is not None
    severity = Severity.HIGH if environment is Environment.PRODUCTION else Severity.MEDIUM
    return Condition(
        fingerprint=f"{DEPLOYMENT_FAILED}:{deployment.application_id}:{deployment.infrastructure_id}",
        alert_type=DEPLOYMENT_FAILED,
        severity=rule.severity or severity,
        title=f"deployment {deployment.id} of {application} {deployment.version} to {place}: {deployment.status.value}",
        message=deployment.error_message,
        labels={"application": application, "infrastructure": place, "environment": environment.value},
        episode=_episode(deployment),
        since=deployment.finished_at,
        for_seconds=rule.for_seconds,
        application_id=deployment.application_id,
        infrastructure_id=deployment.infrastructure_id,
        deployment_id=deployment.id,
    )


def _episode(deployment: Deployment) -> str:
    """A deployment that is tried again fails again."""
    assert deployment.finished_at is not None
    return f"{deployment.id}:{deployment.finished_at.astimezone(UTC).isoformat()}"


def _was_told(alert: MonitoringAlert | None, deployment: Deployment) -> bool:
    """Whether the alert tells of a later one, which may be tried again just now."""
    if alert is None or alert.deployment_id is None or deployment.finished_at is None:
        return False
    until = alert.resolved_at or datetime.now(UTC)
    return alert.deployment_id > deployment.id and until >= deployment.finished_at


def _is_over(session: Session, alert: MonitoringAlert) -> bool:
    where: tuple[Any, Any] = (alert.application_id, alert.infrastructure_id)
    if None in where:
        return True  # what it tells of was removed
    # Counted from the end of the failure: the alert itself may have been raised after the recovery.
    since = alert.fired_at or alert.created_at
    return DeploymentRepository(session).has_recovered(alert.deployment_id, *where, since)
