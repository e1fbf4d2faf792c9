"""Deployments: asked for, looked at, cancelled, tried again. What runs them is a job; its status follows the job's."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func
from sqlalchemy.orm import Session

from db import frozen
from db.errors import Conflict, InvalidInput, NotFound
from db.frozen import Frozen
from db.ledger import clean
from db.models import Deployment, User
from db.releases import Kind, Reference
from db.repositories import (
    ApplicationRepository,
    DeploymentLogRepository,
    DeploymentRepository,
    InfrastructureRepository,
    JobRepository,
    JobSpec,
    UserRepository,
)
from db.services import plans, rights, rollouts
from db.specs import DeploymentSpec, check, storable, text
from db.states import DEPLOYMENT_TRANSITIONS, DeploymentStatus, JobState, Role

RUN_TASK = "tasks.deployments.run"
QUEUE = "deployments"
#: An outage of the database shorter than this stops no deployment.
LEASE_SECONDS = 60.0


def create(
    session: Session,
    *,
    user_id: int,
    application_id: int,
    infrastructure_id: int,
    version: str,
    priority: int = 5,
    digest: str | None = None,
    actor: User | None = None,
) -> Deployment:
    """Ask for a deployment: its row and its job, in the session's transaction. What it is to do is frozen now.

    ``digest`` is what the version's content must be (None: what the first attempt finds it to be). Deployments of one
    application to one infrastructure queue up. Raises NotFound, InvalidInput, PermissionDenied.
    """
    spec = check(DeploymentSpec, {"version": version, "priority": priority, "digest": digest})
    user = UserRepository(session).require(user_id)
    rights.require(user, Role.OPERATOR, "deploying")
    if actor is not None and actor.id != user_id:
        rights.require(actor, Role.ADMIN, "deploying for others")
    application = ApplicationRepository(session).require(application_id)
    infrastructures = InfrastructureRepository(session)
    what = plans.now(application, infrastructures.require(infrastructure_id, *infrastructures.list_options))
    return add(
        session, what, user_id=user_id, application_id=application_id, infrastructure_id=infrastructure_id,
        version=spec.version, priority=spec.priority, digest=spec.digest,
    )  # fmt: skip


def add(
    session: Session, what: Frozen, *, user_id: int, application_id: int, infrastructure_id: int, version: str,
    priority: int = 5, digest: str | None = None, replaces: int | None = None,
) -> Deployment:  # fmt: skip
    """The row and the job of what has been frozen; ``replaces``: the deployment that this one takes back. Raises
    InvalidInput where the digest is none of this content's."""
    release = plans.release_of(what, version)
    if digest is not None:
        _fits(digest, release)
    elif release is not None and release.kind is Kind.URL and what.driver in rollouts.HOST_DRIVERS:
        raise InvalidInput("what is fetched from an address needs its digest", hint="ops deploy --digest sha256:...")
    document = what.document()
    deployment = DeploymentRepository(session).add(
        Deployment(
            user_id=user_id,
            application_id=application_id,
            infrastructure_id=infrastructure_id,
            version=version,
            status=DeploymentStatus.PENDING,
            job_id=uuid4(),
            frozen=document,
            digest=frozen.digest(document),
            release_digest=digest or (release.digest if release else None),
            rollback_deployment_id=replaces,
        )
    )
    _enqueue(session, deployment, what.configuration.timeout_seconds, priority)
    return deployment


def retry(session: Session, *, deployment_id: int, failed_hosts: bool = False, actor: User | None = None) -> Deployment:
    """Put an ended deployment back to pending, with a new job: it does what it was asked for, whatever the application
    has become since; ``failed_hosts``: for those of its hosts alone that are not healthy. Raises NotFound, Conflict,
    PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "deploying")
    deployments = DeploymentRepository(session)
    found = deployments.get_frozen(deployment_id)
    if found is None:
        raise NotFound(f"there is no deployment {deployment_id}")
    what = plans.resolved(found) or plans.now(found.application, found.infrastructure)
    again = [s for s, after in DEPLOYMENT_TRANSITIONS.items() if DeploymentStatus.PENDING in after and s.is_final]
    moved = deployments.move(
        deployment_id, again, DeploymentStatus.PENDING, job_id=uuid4(), error_message=None, started_at=None,
        finished_at=None,
    )  # fmt: skip
    if moved is None:
        status = deployments.status(deployment_id)
        raise Conflict(f"deployment {deployment_id} is {status}; only one that did not succeed can be tried again")
    rollouts.again(session, deployment_id=deployment_id, failed_only=failed_hosts)
    _enqueue(session, moved, what.configuration.timeout_seconds, 5)
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


def pin(session: Session, *, deployment_id: int, job_id: UUID, digest: str) -> str | None:
    """Record what the version's content was found to be, unless that is known; answers what is known then, or None
    when the deployment has another job by now."""
    return DeploymentRepository(session).pin(deployment_id, job_id, digest)


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


def _enqueue(session: Session, deployment: Deployment, timeout_seconds: int, priority: int) -> None:
    JobRepository(session).enqueue(
        JobSpec(
            task=RUN_TASK,
            queue=QUEUE,
            kwargs={"deployment_id": deployment.id},
            id=deployment.job_id,
            priority=priority,
            lock_key=lock_key(deployment),
            unique_key=f"deployment:{deployment.id}",
            timeout_seconds=timeout_seconds,
            lease_seconds=LEASE_SECONDS,
        )
    )


def _fits(digest: str, release: Reference | None) -> None:
    if release is None:
        raise InvalidInput("a digest is given, but the application has no artifact", hint="ops app edit --help")
    if (release.kind is Kind.GIT) != digest.startswith("git:"):
        raise InvalidInput("digest: a commit's is git: and its number, every other content's sha256:")
    if release.digest not in (None, digest):
        raise InvalidInput("digest: the version itself names another one")
