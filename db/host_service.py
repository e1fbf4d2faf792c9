"""What an embedding application does with hosts: a part of :class:`db.service.DatabaseService`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from db.front import Front
from db.models import DeploymentHost, Host, Infrastructure
from db.repositories import DeploymentHostRepository, DeploymentRepository, HostRepository, InfrastructureRepository
from db.services import hosts


class HostService(Front):
    """The machines of an infrastructure, in the order in which a rollout gets to them."""

    def add_host(self, /, infrastructure_id: int, name: str, address: str, **fields: Any) -> Host:
        """Add a host behind the others; fields of :class:`db.rollouts.HostSpec`. Raises NotFound, AlreadyExists,
        Conflict."""
        place = self._place(infrastructure_id)
        return hosts.add(self.session, infrastructure=place, actor=self.actor, name=name, address=address, **fields)

    def edit_host(self, /, host_id: int, *, version_id: int | None = None, **fields: Any) -> Host:
        """Change some fields; a new address without a new key forgets the pinned one. Raises NotFound, AlreadyExists,
        Conflict."""
        rows = HostRepository(self.session)
        host = rows.require(host_id)
        rows.expect(host, version_id)
        return hosts.edit(self.session, host=host, actor=self.actor, **fields)

    def order_hosts(self, infrastructure_id: int, names: Sequence[str]) -> Sequence[Host]:
        """Put all of its hosts into this order. Raises NotFound, Conflict."""
        return hosts.order(
            self.session, infrastructure=self._place(infrastructure_id), names=names, actor=self.actor
        )  # fmt: skip

    def remove_host(self, host_id: int) -> None:
        """What deployments did to it stays known. Raises NotFound, Conflict."""
        hosts.remove(self.session, host=HostRepository(self.session).require(host_id), actor=self.actor)

    def list_hosts(self, infrastructure_id: int) -> Sequence[Host]:
        """In the order of rollouts. Raises NotFound."""
        return hosts.list_(self.session, infrastructure=self._place(infrastructure_id), actor=self.actor)

    def list_deployment_hosts(self, deployment_id: int) -> Sequence[DeploymentHost]:
        """What a deployment did to each host; empty where its driver works on none. Raises NotFound."""
        found = DeploymentRepository(self._reading()).require(deployment_id)
        return DeploymentHostRepository(self.session).of(found.id)

    def _place(self, infrastructure_id: int) -> Infrastructure:
        rows = InfrastructureRepository(self.session)
        return rows.require(infrastructure_id, *rows.list_options)
