"""What one attempt of a deployment is to do: its frozen form with the secrets open, as its driver reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from db import frozen
from db.drivers import secrets_of
from db.errors import Conflict, NotFound
from db.frozen import Frozen
from db.models import Application, Deployment, Infrastructure
from db.releases import Reference, reference
from db.repositories import DeploymentRepository
from db.services import rollouts, secrets


@dataclass(frozen=True)
class Plan:
    """What one attempt is to do, with its secrets open. Lives in memory only; its repr shows no value."""

    deployment_id: int
    version: str
    driver: str
    body: dict[str, Any] = field(repr=False)
    masked: tuple[str, ...] = field(repr=False)
    #: The version's content, where the application has any, and what it must be (None: not known yet).
    release: Reference | None = None
    digest: str | None = None
    #: Where a relative path of the release begins.
    folder: str | None = None


@dataclass(frozen=True)
class Attempt:
    """Everything that a driver's part of the plan is made of."""

    frozen: Frozen
    #: What the attempt is called: OPS_VERSION and the like.
    names: dict[str, str]
    #: Variables and their values, from the application's secrets.
    opened: dict[str, str] = field(repr=False)
    #: Fields of the settings and the values of the secrets they name.
    settings_opened: dict[str, str] = field(repr=False)
    release: Reference | None
    digest: str | None
    #: Those that this attempt is for, where the driver works on hosts.
    hosts: list[dict[str, Any]]


def freeze(session: Session, *, deployment_id: int, job_id: UUID, attempt: int, fence: int) -> Plan:
    """Fix what an attempt is to do, and open its secrets (each opening is recorded).

    Raises NotFound when the deployment or a secret is gone, Conflict when the deployment has another job by now,
    DecryptionError, InvalidInput.
    """
    deployment = DeploymentRepository(session).get_frozen(deployment_id)
    if deployment is None:
        raise NotFound(f"there is no deployment {deployment_id}")
    if deployment.job_id != job_id:
        raise Conflict(f"deployment {deployment_id} has another job by now")
    application, infrastructure = deployment.application, deployment.infrastructure
    what = resolved(deployment) or now(application, infrastructure)
    found = release_of(what, deployment.version)
    owner = infrastructure.owner_id
    # A driver that runs nothing of ours gets no secret of the application.
    wanted = {} if what.driver in _TAKES_NO_SECRETS else what.configuration.secrets
    opened = secrets.open_all(session, owner_id=owner, wanted=wanted, deployment_id=deployment_id)
    named = secrets_of(what.driver, what.settings)
    settings_opened = secrets.open_all(session, owner_id=owner, wanted=named, deployment_id=deployment_id)
    digest = deployment.release_digest or (found.digest if found else None)
    names = names_of(deployment, application, infrastructure, job_id, attempt, fence)
    if found is not None:
        names |= {"OPS_RELEASE": found.location} | ({"OPS_RELEASE_DIGEST": digest} if digest else {})
    hosts = []
    if what.driver in rollouts.HOST_DRIVERS:
        hosts = rollouts.hosts_of(session, deployment=deployment, infrastructure=infrastructure, attempt=attempt)
    made = Attempt(what, names, opened, settings_opened, found, digest, hosts)
    body = _on_hosts(made) if what.driver in rollouts.HOST_DRIVERS else BODIES[what.driver](made)
    masked = (*opened.values(), *settings_opened.values())
    return Plan(deployment_id, deployment.version, what.driver, body, masked, found, digest, what.working_directory)


def now(application: Application, infrastructure: Infrastructure) -> Frozen:
    """What a deployment that is asked for now is to do. Raises InvalidInput."""
    made = frozen.freeze(
        command=application.command, working_directory=application.working_directory,
        health_check_url=application.health_check_url, configuration=application.configuration,
        driver=infrastructure.driver, settings=infrastructure.settings,
    )  # fmt: skip
    rollouts.refuse_unfit(made.configuration, infrastructure)
    return made


def resolved(deployment: Deployment) -> Frozen | None:
    """What was frozen, which is loaded; None where an older release has not frozen it. Raises Conflict where it is not
    what its digest says, which is all that the trail knows of it; InvalidInput."""
    if deployment.frozen is None:
        return None
    if frozen.digest(deployment.frozen) != deployment.digest:
        raise Conflict(f"what deployment {deployment.id} is to do was changed after it was asked for; ask for another")
    return frozen.thaw(deployment.frozen)


def release_of(what: Frozen, version: str) -> Reference | None:
    """The content of a version; None where the application has none. Raises InvalidInput."""
    artifact = what.configuration.artifact
    return None if artifact is None else reference(artifact, version)


def names_of(
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


def _command(attempt: Attempt) -> dict[str, Any]:
    what, configuration = attempt.frozen, attempt.frozen.configuration
    environment = what.settings["environment"] | configuration.environment | attempt.opened | attempt.names
    return {
        "argv": ["/bin/sh", "-c", *what.command] if configuration.shell else what.command,
        "cwd": what.working_directory,
        "environment": environment,
        "health": configuration.health.model_dump() | {"url": what.health_check_url} if what.health_check_url else None,
        "promote": configuration.promote,
        "abort": configuration.abort,
    }


def _webhook(attempt: Attempt) -> dict[str, Any]:
    """No secret of the application goes out; the receiver has its own."""
    names = {name.removeprefix("OPS_").lower(): value for name, value in attempt.names.items()}
    return {
        "settings": attempt.frozen.settings,
        "secret": attempt.settings_opened["secret"],
        "token": attempt.settings_opened.get("token"),
        "body": names | {"variables": attempt.frozen.configuration.environment},
        "job_id": attempt.names["OPS_JOB_ID"],
        "attempt": int(attempt.names["OPS_ATTEMPT"]),
        "fence": int(attempt.names["OPS_FENCE"]),
    }


def _docker(attempt: Attempt) -> dict[str, Any]:
    what, configuration, release = attempt.frozen, attempt.frozen.configuration, attempt.release
    assert release is not None  # `db.frozen.freeze` has seen to it
    names = attempt.names
    return {
        "settings": what.settings,
        "secrets": attempt.settings_opened,
        "image": release.location,
        "digest": attempt.digest,
        "command": what.command,
        "environment": what.settings["environment"] | configuration.environment | attempt.opened | names,
        "health": configuration.health.model_dump() | {"url": what.health_check_url},
        "names": names,
        "lock": f"{names['OPS_INFRASTRUCTURE']}/{names['OPS_APPLICATION']}",
    }


def _on_hosts(attempt: Attempt) -> dict[str, Any]:
    what = attempt.frozen
    environment = what.settings["environment"] | what.configuration.environment | attempt.opened | attempt.names
    settings = what.settings | attempt.settings_opened
    return rollouts.body(what, environment, attempt.hosts, settings, attempt.release, attempt.digest)


#: The plan of each driver that does not work on hosts.
BODIES: dict[str, Callable[[Attempt], dict[str, Any]]] = {"command": _command, "docker": _docker, "webhook": _webhook}
_TAKES_NO_SECRETS = frozenset({"webhook"})
