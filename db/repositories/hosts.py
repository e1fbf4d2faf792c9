"""Hosts, and what deployments did to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.errors import NotFound
from db.models import Base, Deployment, DeploymentHost, Host, Infrastructure
from db.models.host import MAX_HOSTS
from db.repositories.base import Repository
from db.states import DeploymentStatus, HostStatus

_SCHEMA = f"{Base.metadata.schema}."

# The job is read under a lock, so that an attempt which is ending meanwhile is either over or still to come.
_RECORD = text(
    f"""WITH held AS MATERIALIZED (
      SELECT id FROM {_SCHEMA}jobs WHERE id = :job_id AND attempt = :attempt AND lease_token = :token
        AND state = 'running' FOR SHARE)
    UPDATE {_SCHEMA}deployment_hosts h SET
      status = g->>'status',
      batch = coalesce((g->>'batch')::int, h.batch),
      release = CASE WHEN jsonb_exists(g, 'release') THEN g->>'release' ELSE h.release END,
      previous_release = CASE WHEN jsonb_exists(g, 'previous_release') THEN g->>'previous_release'
        ELSE h.previous_release END,
      message = CASE WHEN jsonb_exists(g, 'message') THEN g->>'message' ELSE h.message END,
      attempt = :attempt,
      started_at = CASE WHEN h.status = 'pending' AND g->>'status' = 'running' THEN clock_timestamp()
        ELSE h.started_at END,
      finished_at = CASE WHEN g->>'status' NOT IN ('pending', 'running', 'switched') THEN clock_timestamp() END
    FROM jsonb_array_elements(CAST(:hosts AS jsonb)) g, held, {_SCHEMA}deployments d
    WHERE d.job_id = held.id AND d.id = :deployment_id AND h.deployment_id = d.id AND h.name = g->>'name'
      AND jsonb_exists(g->'after', h.status)"""  # noqa: S608 - our own schema's name
)


class HostRepository(Repository[Host]):
    model = Host
    noun = "host"

    def of(self, infrastructure_id: int) -> Sequence[Host]:
        """An infrastructure's hosts in their order."""
        query = select(Host).where(Host.infrastructure_id == infrastructure_id)
        return self.session.scalars(query.order_by(Host.position)).all()

    def require_by_name(self, infrastructure: Infrastructure, name: str) -> Host:
        """Raises NotFound."""
        query = select(Host).where(Host.infrastructure_id == infrastructure.id, func.lower(Host.name) == name.lower())
        found = self.session.scalar(query)
        if found is None:
            raise NotFound(
                f"{infrastructure.name} has no host {name[:80]!r}", hint=f"ops infra host list {infrastructure.name}"
            )
        return found

    def free_position(self, infrastructure_id: int) -> int | None:
        """Behind the last host, or in the first gap where that is the end; None: there is no room."""
        taken = set(self.session.scalars(select(Host.position).where(Host.infrastructure_id == infrastructure_id)))
        behind = max(taken, default=-1) + 1
        if behind < MAX_HOSTS:
            return behind
        return next((each for each in range(MAX_HOSTS) if each not in taken), None)


class DeploymentHostRepository:
    """What deployments did to hosts, a row each."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def of(self, deployment_id: int) -> Sequence[DeploymentHost]:
        """In the order of the hosts."""
        query = select(DeploymentHost).where(DeploymentHost.deployment_id == deployment_id)
        return self.session.scalars(query.order_by(DeploymentHost.position, DeploymentHost.name)).all()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add what is not there yet: deployment_id, name, position, attempt."""
        if rows:
            apply_context(self.session)
            self.session.execute(insert(DeploymentHost).on_conflict_do_nothing(), list(rows))

    def forget(self, deployment_id: int, names: Iterable[str]) -> None:
        """Remove hosts that the infrastructure has no more."""
        where = (DeploymentHost.deployment_id == deployment_id, DeploymentHost.name.in_(list(names)))
        apply_context(self.session)
        self.session.execute(delete(DeploymentHost).where(*where))

    def reset(self, deployment_id: int, *but: HostStatus) -> int:
        """Put hosts back to pending, ``but`` those in these statuses; how many. What runs there is still known."""
        apply_context(self.session)
        where = [DeploymentHost.deployment_id == deployment_id, DeploymentHost.status.not_in(but)]
        query = update(DeploymentHost).where(*where)
        values = {"status": HostStatus.PENDING, "batch": None, "message": None, "started_at": None}
        result = self.session.execute(query.values(**values, finished_at=None))
        return int(getattr(result, "rowcount", 0))

    def record(
        self, deployment_id: int, job_id: UUID, attempt: int, token: UUID, hosts: Sequence[dict[str, Any]]
    ) -> int:
        """Set what is known of hosts, in one statement: ``name``, ``status``, ``after`` (the statuses that it may
        follow), and what of ``batch release previous_release message`` is given. Answers how many rows were set: none
        where this attempt is not the job's any more."""
        apply_context(self.session)
        values = {"job_id": job_id, "attempt": attempt, "token": token, "deployment_id": deployment_id}
        result = self.session.execute(_RECORD, values | {"hosts": json.dumps(list(hosts))})
        return int(getattr(result, "rowcount", 0))

    def good(self, application_id: int, infrastructure_id: int, but: int) -> dict[str, str]:
        """The release of each host in the last deployment of which all hosts were healthy, other than ``but``."""
        last = (
            select(Deployment.id)
            .where(
                Deployment.application_id == application_id,
                Deployment.infrastructure_id == infrastructure_id,
                Deployment.status == DeploymentStatus.SUCCESS,
                Deployment.id != but,
            )
            .order_by(Deployment.finished_at.desc())
            .limit(1)
        )
        query = select(DeploymentHost.name, DeploymentHost.release).where(
            DeploymentHost.deployment_id == last.scalar_subquery(), DeploymentHost.release.is_not(None)
        )
        return {name: release for name, release in self.session.execute(query) if release is not None}
