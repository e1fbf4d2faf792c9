"""Alerts: at most one open per fingerprint, raised and resolved by a tick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, literal_column, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from db.connection import apply_context
from db.errors import Conflict
from db.models import Application, Deployment, Infrastructure, MonitoringAlert, User
from db.repositories import MonitoringAlertRepository
from db.services import rights
from db.states import AlertStatus, DeploymentStatus, Environment, Role, Severity

DEPLOYMENT_FAILED = "deployment_failed"
_BAD = (DeploymentStatus.FAILED, DeploymentStatus.ERROR)


def evaluate(session: Session) -> dict[str, Any] | None:
    """Raise an alert for each application and infrastructure whose newest ended deployment failed; resolve those whose
    newest succeeded. Answers the counts, or None when nothing changed."""
    apply_context(session)
    raised = sum(_raise(session, *row) for row in _failed(session))
    resolved = _resolve_recovered(session)
    changed = {name: count for name, count in (("raised", raised), ("resolved", resolved)) if count}
    return changed or None


def acknowledge(session: Session, *, alert_id: int, actor: User | None = None) -> MonitoringAlert:
    """Say that somebody looks after it. Raises NotFound, Conflict (it is resolved, or somebody was faster),
    PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "acknowledging alerts")
    alerts = MonitoringAlertRepository(session)
    alerts.require(alert_id)
    found = alerts.acknowledge(alert_id, actor.id if actor else None)
    if found is None:
        raise Conflict(f"alert {alert_id} is resolved or acknowledged already")
    return found


def resolve(session: Session, *, alert_id: int, actor: User | None = None) -> MonitoringAlert:
    """Close it by hand; it is raised anew when it fails again. Raises NotFound, Conflict, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "resolving alerts")
    alerts = MonitoringAlertRepository(session)
    alerts.require(alert_id)
    found = alerts.resolve(alert_id)
    if found is None:
        raise Conflict(f"alert {alert_id} is resolved already")
    return found


def _failed(session: Session) -> Sequence[Any]:
    """Failures that no later end has overtaken, and that no alert has told of yet."""
    later = aliased(Deployment)
    overtaken = (
        select(later.id)
        .where(
            later.application_id == Deployment.application_id,
            later.infrastructure_id == Deployment.infrastructure_id,
            # By the time of the end: a deployment that is tried again ends again.
            tuple_(later.finished_at, later.id) > tuple_(Deployment.finished_at, Deployment.id),
            later.status.in_((*_BAD, DeploymentStatus.SUCCESS)),
        )
        .exists()
    )
    # What was resolved by hand stays resolved, until it fails again.
    told = (
        select(MonitoringAlert.id)
        .where(
            MonitoringAlert.application_id == Deployment.application_id,
            MonitoringAlert.infrastructure_id == Deployment.infrastructure_id,
            MonitoringAlert.alert_type == DEPLOYMENT_FAILED,
            # Of this one or of a later one, which may be tried again just now.
            MonitoringAlert.deployment_id >= Deployment.id,
            func.coalesce(MonitoringAlert.resolved_at, func.now()) >= Deployment.finished_at,
        )
        .exists()
    )
    query = (
        select(Deployment, Application.name, Infrastructure.name, Infrastructure.environment)
        .join(Application, Application.id == Deployment.application_id)
        .join(Infrastructure, Infrastructure.id == Deployment.infrastructure_id)
        .where(Deployment.status.in_(_BAD), ~overtaken, ~told)
        .order_by(Deployment.id)
        .limit(500)
    )
    return session.execute(query).all()


def _raise(session: Session, deployment: Deployment, application: str, place: str, environment: Environment) -> int:
    """One alert; where one is open for this place already, it tells of the newest failure. Answers how many are new."""
    told = {
        "severity": Severity.HIGH if environment is Environment.PRODUCTION else Severity.MEDIUM,
        "title": f"deployment {deployment.id} of {application} {deployment.version} to {place}: "
        f"{deployment.status.value}",
        "message": deployment.error_message,
        "deployment_id": deployment.id,
    }
    statement = insert(MonitoringAlert).values(
        fingerprint=f"{DEPLOYMENT_FAILED}:{deployment.application_id}:{deployment.infrastructure_id}",
        alert_type=DEPLOYMENT_FAILED,
        status=AlertStatus.FIRING,
        application_id=deployment.application_id,
        infrastructure_id=deployment.infrastructure_id,
        fired_at=func.clock_timestamp(),
        **told,
    )
    statement = statement.on_conflict_do_update(
        index_elements=[MonitoringAlert.fingerprint],
        index_where=text("status <> 'resolved'"),  # as the index has it: a parameter would not match it
        set_=told | {"updated_at": func.clock_timestamp()},
    )
    # A row that was inserted has never been locked or updated by anybody.
    return int(session.scalar(statement.returning(literal_column("xmax = 0"))) or 0)


def _resolve_recovered(session: Session) -> int:
    failed, better = aliased(Deployment), aliased(Deployment)
    # Counted from the end of the failure: the alert itself may have been raised after the recovery.
    since = select(failed.finished_at).where(failed.id == MonitoringAlert.deployment_id).correlate(MonitoringAlert)
    recovered = (
        select(better.id)
        .where(
            better.application_id == MonitoringAlert.application_id,
            better.infrastructure_id == MonitoringAlert.infrastructure_id,
            better.finished_at >= func.coalesce(since.scalar_subquery(), MonitoringAlert.fired_at),
            better.status == DeploymentStatus.SUCCESS,
        )
        .exists()
    )
    statement = (
        update(MonitoringAlert)
        .where(
            MonitoringAlert.alert_type == DEPLOYMENT_FAILED,
            MonitoringAlert.status != AlertStatus.RESOLVED,
            recovered,
        )
        .values(status=AlertStatus.RESOLVED, resolved_at=func.clock_timestamp(), updated_at=func.clock_timestamp())
        .returning(MonitoringAlert.id)
    )
    return len(session.scalars(statement, execution_options={"synchronize_session": False}).all())
