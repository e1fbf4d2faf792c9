"""Infrastructure in a document, with its hosts. What is new belongs to who applies it; an owner is never changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.drivers import DRIVER_SETTINGS
from db.errors import OpsError
from db.fields import Name, Spec
from db.models import Host, Infrastructure, User
from db.models.host import MAX_HOSTS
from db.repositories import InfrastructureRepository
from db.rollouts import Address, PublicKeys
from db.services import hosts, infrastructure
from db.services.declared.kind import At, Choice, Found, Kind
from db.specs import InfrastructureSpec

#: Where a difference in the order of hosts is told of.
_ORDER = "order of hosts"


class DeclaredHost(Spec):
    """A host, whose name is its key."""

    address: Address
    port: int = Field(22, ge=1, le=65535)
    host_key: PublicKeys | None = None


class DeclaredInfrastructure(InfrastructureSpec):
    """An infrastructure with all of its hosts, by name and in the order of rollouts; without ``hosts`` nothing is said
    of them."""

    hosts: dict[Name, DeclaredHost] | None = Field(None, max_length=MAX_HOSTS)


class Infrastructures(Kind):
    key = "infrastructure"
    noun = "infrastructure"
    spec = DeclaredInfrastructure
    choices = (Choice("driver", "settings", DRIVER_SETTINGS, default="command"),)

    def found(self, session: Session) -> Iterable[Found]:
        fields = [name for name in InfrastructureSpec.model_fields if name != "name"]
        query = select(Infrastructure).options(*InfrastructureRepository.list_options)
        known: dict[int, dict[str, Any]] = defaultdict(dict)
        for host in session.scalars(select(Host).order_by(Host.infrastructure_id, Host.position)):
            values = {name: getattr(host, name) for name in DeclaredHost.model_fields}
            known[host.infrastructure_id][host.name] = {name: each for name, each in values.items() if each is not None}
        for row in session.scalars(query.order_by(func.lower(Infrastructure.name))):
            values = {field: getattr(row, field) for field in fields} | {"hosts": known.get(row.id)}
            yield Found(row, row.name, self.stored(row.name, values))

    def compared(self, found: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        if "hosts" not in wanted:
            return {name: value for name, value in found.items() if name != "hosts"}, wanted
        there, new = list(found.get("hosts", ())), list(wanted["hosts"])
        before = [name for name in there if name.lower() in {each.lower() for each in new}]
        after = [name for name in new if name.lower() in {each.lower() for each in there}]
        found = {"hosts": {}} | found
        if [name.lower() for name in before] != [name.lower() for name in after]:
            return found | {_ORDER: before}, wanted | {_ORDER: after}
        return found, wanted

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        wanted = values.get("hosts")
        values = {field: value for field, value in values.items() if field != "hosts"}
        made = infrastructure.register(session, owner_id=actor.id, actor=actor, name=name, **values)
        self._host(session, made, wanted, actor)

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:
        whole = self.whole(values)
        wanted = whole.pop("hosts")
        infrastructure.edit(session, infrastructure=row, actor=actor, name=name, **whole)
        self._host(session, row, wanted, actor)

    def remove(self, session: Session, row: Any, actor: User) -> None:
        infrastructure.remove(session, infrastructure=row, actor=actor)

    @staticmethod
    def _host(session: Session, row: Infrastructure, wanted: dict[str, Any] | None, actor: User) -> None:
        """Make its hosts those that are wanted, in this order. Raises At, Conflict."""
        if wanted is None:
            return
        there = {host.name.lower(): host for host in hosts.list_(session, infrastructure=row, actor=actor)}
        for key, host in there.items():
            if key not in {name.lower() for name in wanted}:
                hosts.remove(session, host=host, actor=actor)
        for name, values in wanted.items():
            whole = {"port": 22, "host_key": None} | values | {"name": name}
            try:
                if (known := there.get(name.lower())) is not None:
                    hosts.edit(session, host=known, actor=actor, **whole)
                else:
                    hosts.add(session, infrastructure=row, actor=actor, **whole)
            except OpsError as error:
                raise At(("hosts", name), error) from None
        hosts.order(session, infrastructure=row, names=list(wanted), actor=actor)
