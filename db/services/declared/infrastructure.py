"""Infrastructure in a document, with its hosts. What is new belongs to who applies it; an owner is never changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.errors import Conflict
from db.fields import Name, Spec, check
from db.models import Host, Infrastructure, User
from db.models.host import MAX_HOSTS
from db.repositories import HostRepository, InfrastructureRepository
from db.rollouts import Address, HostSpec, PublicKeys
from db.services import infrastructure
from db.services.declared.kind import Found, Kind
from db.specs import InfrastructureSpec


class DeclaredHost(Spec):
    """A host, whose name is its key."""

    address: Address
    port: int = Field(22, ge=1, le=65535)
    host_key: PublicKeys | None = None


class DeclaredInfrastructure(InfrastructureSpec):
    """An infrastructure with all of its hosts, by name; without ``hosts`` nothing is said of them."""

    hosts: dict[Name, DeclaredHost] | None = Field(None, max_length=MAX_HOSTS)


class Infrastructures(Kind):
    key = "infrastructure"
    noun = "infrastructure"
    spec = DeclaredInfrastructure

    def found(self, session: Session) -> Iterable[Found]:
        fields = [name for name in InfrastructureSpec.model_fields if name != "name"]
        query = select(Infrastructure).options(*InfrastructureRepository.list_options)
        hosts: dict[int, dict[str, Any]] = defaultdict(dict)
        for host in session.scalars(select(Host).order_by(Host.infrastructure_id, Host.position)):
            values = {name: getattr(host, name) for name in DeclaredHost.model_fields}
            hosts[host.infrastructure_id][host.name] = {name: each for name, each in values.items() if each is not None}
        for row in session.scalars(query.order_by(func.lower(Infrastructure.name))):
            values = {field: getattr(row, field) for field in fields} | {"hosts": hosts.get(row.id)}
            yield Found(row, row.name, self.stored(row.name, values))

    def beside(self, found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
        if "hosts" in wanted:
            return {"hosts": {}} | found
        return {name: value for name, value in found.items() if name != "hosts"}

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        hosts = values.get("hosts")
        values = {field: value for field, value in values.items() if field != "hosts"}
        made = infrastructure.register(session, owner_id=actor.id, actor=actor, name=name, **values)
        self._host(session, made, hosts)

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:
        whole = self.whole(values)
        hosts = whole.pop("hosts")
        infrastructure.edit(session, infrastructure=row, actor=actor, name=name, **whole)
        self._host(session, row, hosts)

    def remove(self, session: Session, row: Any, actor: User) -> None:
        infrastructure.remove(session, infrastructure=row, actor=actor)

    @staticmethod
    def _host(session: Session, row: Infrastructure, wanted: dict[str, Any] | None) -> None:
        """Make its hosts those that are wanted, new ones behind the others. Raises Conflict."""
        if wanted is None:
            return
        rows = HostRepository(session)
        there = {host.name.lower(): host for host in rows.of(row.id)}
        for key, host in there.items():
            if key not in {name.lower() for name in wanted}:
                rows.delete(host)
        for name, values in wanted.items():
            spec = check(HostSpec, {"name": name} | values)
            if (known := there.get(name.lower())) is not None:
                rows.change(known, **spec.model_dump())
                continue
            position = rows.free_position(row.id)
            if position is None:
                raise Conflict(f"{row.name} has {MAX_HOSTS} hosts, and that is the limit")
            rows.add(Host(infrastructure_id=row.id, position=position, **spec.model_dump()))
