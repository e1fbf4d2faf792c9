"""Deployments to hosts: what is to be done on which, and what became of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from db.errors import Conflict, InvalidInput
from db.frozen import Frozen
from db.ledger import clean
from db.models import Deployment, DeploymentHost, Infrastructure
from db.releases import Kind, Reference, reference
from db.repositories import DeploymentHostRepository, HostRepository
from db.specs import ApplicationConfiguration
from db.states import HOST_TRANSITIONS, HostStatus

#: Drivers that put an application on the hosts of an infrastructure.
HOST_DRIVERS = frozenset({"ssh"})
_MAX_MESSAGE = 2000


def refuse_unfit(configuration: ApplicationConfiguration, infrastructure: Infrastructure) -> None:
    """Raises InvalidInput where the driver would silently do less than the application asks for."""
    if infrastructure.driver in HOST_DRIVERS and (configuration.promote or configuration.abort):
        raise InvalidInput(
            f"promote and abort belong to the command driver, and {infrastructure.name} uses {infrastructure.driver}: "
            "there a rollout switches and rolls back"
        )
    if infrastructure.driver in HOST_DRIVERS and configuration.artifact is not None:
        kind = reference(configuration.artifact, "1").kind
        if kind is Kind.IMAGE:
            raise InvalidInput(f"the {infrastructure.driver} driver brings a folder, a tar or a commit, no image")


def hosts_of(
    session: Session, *, deployment: Deployment, infrastructure: Infrastructure, attempt: int
) -> list[dict[str, Any]]:
    """The hosts that this attempt is for, in order, each with its row: all of the infrastructure's, or those that a
    retry has put back to pending. ``good``: the release there that was last healthy on all hosts, None: none was.

    Raises Conflict where there is none.
    """
    hosts = {host.name: host for host in HostRepository(session).of(infrastructure.id)}
    if not hosts:
        raise Conflict(
            f"{infrastructure.name} has no hosts", hint=f"ops infra host add {infrastructure.name} NAME ADDRESS"
        )
    rows = DeploymentHostRepository(session)
    known = {row.name: row.status for row in rows.of(deployment.id)}
    rows.forget(deployment.id, known.keys() - hosts.keys())
    if any(status is not HostStatus.PENDING for status in known.values()):  # only some of them are tried again
        wanted = [host for host in hosts.values() if known.get(host.name) is HostStatus.PENDING]
    else:
        wanted = list(hosts.values())
        each = {"deployment_id": deployment.id, "attempt": attempt}
        rows.add([each | {"name": host.name, "position": host.position} for host in wanted])
    if not wanted:
        raise Conflict("none of the hosts that were to be tried again is there any more")
    good = rows.good(deployment.application_id, infrastructure.id, deployment.id)
    return [
        {"name": host.name, "address": host.address, "port": host.port, "host_key": host.host_key,
         "good": good.get(host.name)}
        for host in wanted
    ]  # fmt: skip


def body(
    what: Frozen,
    environment: dict[str, str],
    hosts: list[dict[str, Any]],
    settings: dict[str, Any],
    release: Reference | None,
    digest: str | None,
) -> dict[str, Any]:
    """The plan of a driver for hosts, see ``tasks.drivers.rollout``."""
    configuration = what.configuration
    artifact = None
    if release is not None:
        artifact = {"kind": release.kind.value, "location": release.location, "digest": digest}
    return {
        "hosts": hosts,
        "settings": settings,
        "environment": environment,
        "command": ["/bin/sh", "-c", *what.command] if configuration.shell else what.command,
        "artifact": artifact,
        "folder": what.working_directory,
        "health": configuration.health.model_dump() | {"url": what.health_check_url},
        "rollout": configuration.rollout.model_dump(),
        "steps": configuration.steps.model_dump(),
    }


def record(
    session: Session,
    *,
    deployment_id: int,
    job_id: UUID,
    attempt: int,
    token: UUID,
    hosts: Any,
    mask: Callable[[str], str] = lambda text: text,
) -> bool:
    """Store what a driver says of hosts, all of it or none; False: this attempt is not the job's any more, or a host
    cannot have come to that status. Said again, it is stored again. Raises InvalidInput for what is no report."""
    rows = [_row(each, mask) for each in hosts] if isinstance(hosts, list) else []
    if not rows:
        raise InvalidInput("a report names hosts")
    stored = DeploymentHostRepository(session).record(deployment_id, job_id, attempt, token, rows)
    if stored == len(rows):
        return True
    if stored:
        raise Conflict("a host cannot have come to this status")  # and nothing of it is kept
    return False


def _row(host: Any, mask: Callable[[str], str]) -> dict[str, Any]:
    try:
        status = HostStatus(host["status"])
        row: dict[str, Any] = {"name": str(host["name"]), "status": status.value}
    except (KeyError, TypeError, ValueError):
        raise InvalidInput("a report names a host and its status") from None
    row["after"] = [status.value, *(each.value for each, then in HOST_TRANSITIONS.items() if status in then)]
    if isinstance(host.get("batch"), int):
        row["batch"] = host["batch"]
    for name in ("release", "previous_release", "message"):
        if name in host:
            row[name] = None if host[name] is None else clean(mask(str(host[name]))[:_MAX_MESSAGE])
    return row


def again(session: Session, *, deployment_id: int, failed_only: bool) -> None:
    """Put a deployment's hosts back to pending for another attempt: all, or those that are not healthy.

    Raises Conflict where only some are wanted and there are none.
    """
    rows = DeploymentHostRepository(session)
    if failed_only and not any(row.status is not HostStatus.HEALTHY for row in rows.of(deployment_id)):
        raise Conflict(
            f"deployment {deployment_id} has no hosts that failed", hint=f"ops deployment show {deployment_id}"
        )
    rows.reset(deployment_id, *([HostStatus.HEALTHY] if failed_only else []))


def list_(session: Session, *, deployment_id: int) -> list[DeploymentHost]:
    """What a deployment did to its hosts, in their order."""
    return list(DeploymentHostRepository(session).of(deployment_id))
