"""Deployments: asked for, looked at, cancelled, tried again. What runs them is a job; its status follows the job's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func
from sqlalchemy.orm import Session

from db.errors import Conflict, InvalidInput, NotFound
from db.ledger import clean
from db.models import Application, Deployment, Infrastructure, User
from db.repositories import (
    ApplicationRepository,
    DeploymentLogRepository,
    DeploymentRepository,
    InfrastructureRepository,
    JobRepository,
    JobSpec,
    UserRepository,
)
from db.services import rights, rollouts, secrets
from db.specs import DRIVER_SETTINGS, ApplicationConfiguration, DeploymentSpec, check, storable, text
from db.states import DEPLOYMENT_TRANSITIONS, DeploymentStatus, JobState, Role

RUN_TASK = "tasks.deployments.run"
QUEUE = "deployments"
#: An outage of the database shorter than this stops no deployment.
LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What one attempt is to do, with its secrets open. Lives in memory only; its repr shows no value."""

    deployment_id: int
    driver: str
    body: dict[str, Any] = field(repr=False)
    masked: tuple[str, ...] = field(repr=False)


def create(
    session: Session,
    *,
    user_id: int,
    application_id: int,
    infrastructure_id: int,
    version: str,
    priority: int = 5,
    actor: User | None = None,
) -> Deployment:
    """Ask for a deployment: its row and its job, in the session's transaction.

    Deployments of one application to one infrastructure queue up. Raises NotFound, InvalidInput, PermissionDenied.
    """
    spec = check(DeploymentSpec, {"version": version, "priority": priority})
    user = UserRepository(session).require(user_id)
    rights.require(user, Role.OPERATOR, "deploying")
    if actor is not None and actor.id != user_id:
        rights.require(actor, Role.ADMIN, "deploying for others")
    application = ApplicationRepository(session).require(application_id)
    infrastructure = InfrastructureRepository(session).require(infrastructure_id)
    configuration = _configuration(application)
    rollouts.refuse_unfit(configuration, infrastructure)
    deployment = DeploymentRepository(session).add(
        Deployment(
            user_id=user_id,
            application_id=application_id,
            infrastructure_id=infrastructure_id,
            version=spec.version,
            status=DeploymentStatus.PENDING,
            job_id=uuid4(),
        )
    )
    _enqueue(session, deployment, configuration, spec.priority)
    return deployment


def retry(session: Session, *, deployment_id: int, failed_hosts: bool = False, actor: User | None = None) -> Deployment:
    """Put an ended deployment back to pending, with a new job; ``failed_hosts``: for those of its hosts alone that are
    not healthy. Raises NotFound, Conflict, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "deploying")
    deployments = DeploymentRepository(session)
    application = ApplicationRepository(session).require(deployments.require(deployment_id).application_id)
    configuration = _configuration(application)
    again = [s for s, after in DEPLOYMENT_TRANSITIONS.items() if DeploymentStatus.PENDING in after and s.is_final]
    moved = deployments.move(
        deployment_id, again, DeploymentStatus.PENDING, job_id=uuid4(), error_message=None, started_at=None,
        finished_at=None,
    )  # fmt: skip
    if moved is None:
        status = deployments.status(deployment_id)
        raise Conflict(f"deployment {deployment_id} is {status}; only one that did not succeed can be tried again")
    rollouts.again(session, deployment_id=deployment_id, failed_only=failed_hosts)
    _enqueue(session, moved, configuration, 5)
    return moved


def cancel(session: Session, *, deployment_id: int, reason: str | None = None, actor: User | None = None) -> JobState:
    """Cancel a queued deployment at once, or ask for the end of a running one; answers its job's state.

    Raises NotFound, Conflict (it has ended), PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "cancelling deployments")
    reason = None if reason is None else storable(reason, "a reason")[:1000]
    deployment = DeploymentRepository(session).require(deployment_id)
    state = JobRepository(session).cancel(deployment.job_id, reason) if deployment.job_id else None
    if state is None:
        status = DeploymentRepository(session).status(deployment_id)
        raise Conflict(f"deployment {deployment_id} is {status}; there is nothing to cancel")
    return state


def update_status(
    session: Session,
    *,
    deployment_id: int,
    status: DeploymentStatus | str,
    error_message: str | None = None,
    actor: User | None = None,
) -> Deployment:
    """Set the status of a deployment that something outside runs. One whose job is alive follows its job; one that
    has ended becomes pending again by :func:`retry` only, which gives it a job.

    Raises NotFound, InvalidInput, Conflict, PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "setting the status of deployments")
    try:
        to = DeploymentStatus(status)
    except ValueError:
        raise InvalidInput(f"{str(status)[:40]!r} is no status; known are: {', '.join(DeploymentStatus)}") from None
    if error_message is not None:
        text(error_message, "an error message")
    deployments = DeploymentRepository(session)
    current = deployments.require(deployment_id)
    job = JobRepository(session).get(current.job_id) if current.job_id else None
    if job is not None and not job.state.is_final and to is not DeploymentStatus.ROLLED_BACK:
        raise Conflict(f"deployment {deployment_id} follows its job, which is {job.state.value}")
    came_from = [s for s, after in DEPLOYMENT_TRANSITIONS.items() if to in after]
    values: dict[str, Any] = {"error_message": clean(error_message) or None}
    if to in (DeploymentStatus.FAILED, DeploymentStatus.ERROR) and not error_message:
        raise InvalidInput(f"{to.value} needs an error message")
    if to is DeploymentStatus.PENDING:
        came_from = [s for s in came_from if not s.is_final]
        values["started_at"] = None
    elif to is DeploymentStatus.RUNNING:
        values["started_at"] = func.clock_timestamp()
    elif to is not DeploymentStatus.ROLLED_BACK:
        values["finished_at"] = func.clock_timestamp()
    moved = deployments.move(deployment_id, came_from, to, **values)
    if moved is None:
        raise Conflict(
            f"deployment {deployment_id} is {deployments.status(deployment_id)} and cannot become {to.value}"
        )
    return moved


def freeze(session: Session, *, deployment_id: int, job_id: UUID, attempt: int, fence: int) -> Plan:
    """Resolve what an attempt is to do, open its secrets (each opening is recorded), and fix it.

    Raises NotFound when the deployment or a secret is gone, Conflict when the deployment has another job by now,
    DecryptionError, InvalidInput.
    """
    deployment = DeploymentRepository(session).get_with_relations(deployment_id)
    if deployment is None:
        raise NotFound(f"there is no deployment {deployment_id}")
    if deployment.job_id != job_id:
        raise Conflict(f"deployment {deployment_id} has another job by now")
    application, infrastructure = deployment.application, deployment.infrastructure
    configuration = _configuration(application)
    settings = check(DRIVER_SETTINGS[infrastructure.driver], infrastructure.settings, "settings").model_dump()
    opened = secrets.open_all(
        session, owner_id=infrastructure.owner_id, wanted=configuration.secrets, deployment_id=deployment_id
    )
    environment = settings["environment"] | configuration.environment | opened
    environment |= _names(deployment, application, infrastructure, job_id, attempt, fence)
    if infrastructure.driver in rollouts.HOST_DRIVERS:
        rollouts.refuse_unfit(configuration, infrastructure)
        hosts = rollouts.hosts_of(session, deployment=deployment, infrastructure=infrastructure, attempt=attempt)
        key = secrets.open_all(
            session, owner_id=infrastructure.owner_id, wanted={"key": settings["key"]}, deployment_id=deployment_id
        )
        body = rollouts.body(application, configuration, environment, hosts, settings | key)
        return Plan(deployment_id, infrastructure.driver, body, (*opened.values(), *key.values()))
    body = {
        "argv": ["/bin/sh", "-c", *application.command] if configuration.shell else application.command,
        "cwd": application.working_directory,
        "environment": environment,
        "health": configuration.health.model_dump() | {"url": application.health_check_url}
        if application.health_check_url
        else None,
        "promote": configuration.promote,
        "abort": configuration.abort,
    }
    return Plan(deployment_id, infrastructure.driver, body, tuple(opened.values()))


def append_log(session: Session, *, deployment_id: int, attempt: int, pieces: list[tuple[str, str]]) -> None:
    """Store output in order: (stream, text)."""
    DeploymentLogRepository(session).append(
        [
            {"deployment_id": deployment_id, "attempt": attempt, "stream": stream, "content": text}
            for stream, text in pieces
        ]
    )


def lock_key(deployment: Deployment) -> str:
    """What deployments queue up on."""
    return f"infrastructure:{deployment.infrastructure_id}/application:{deployment.application_id}"


def _configuration(application: Application) -> ApplicationConfiguration:
    return check(ApplicationConfiguration, application.configuration, "configuration")


def _enqueue(session: Session, deployment: Deployment, configuration: ApplicationConfiguration, priority: int) -> None:
    JobRepository(session).enqueue(
        JobSpec(
            task=RUN_TASK,
            queue=QUEUE,
            kwargs={"deployment_id": deployment.id},
            id=deployment.job_id,
            priority=priority,
            lock_key=lock_key(deployment),
            unique_key=f"deployment:{deployment.id}",
            timeout_seconds=configuration.timeout_seconds,
            lease_seconds=LEASE_SECONDS,
        )
    )


def _names(
    deployment: Deployment,
    application: Application,
    infrastructure: Infrastructure,
    job_id: UUID,
    attempt: int,
    fence: int,
) -> dict[str, str]:
    """What a command learns of itself."""
    return {
        "OPS_VERSION": deployment.version,
        "OPS_DEPLOYMENT_ID": str(deployment.id),
        "OPS_APPLICATION": application.name,
        "OPS_INFRASTRUCTURE": infrastructure.name,
        "OPS_ENVIRONMENT": infrastructure.environment.value,
        "OPS_JOB_ID": str(job_id),
        "OPS_ATTEMPT": str(attempt),
        "OPS_FENCE": str(fence),
    }
