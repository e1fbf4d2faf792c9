"""Hosts of an infrastructure: registered, edited, removed; their keys pinned when somebody says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from db.errors import Conflict, InvalidInput
from db.models import Host, Infrastructure, User
from db.models.host import MAX_HOSTS
from db.repositories import HostRepository
from db.rollouts import HostOrder, HostSpec
from db.services import rights
from db.specs import check
from db.states import Role

_FIELDS = ("name", "address", "port", "host_key")


def add(session: Session, *, infrastructure: Infrastructure, actor: User | None = None, **values: Any) -> Host:
    """Add a host behind the others: ``name``, ``address`` and what else :class:`HostSpec` has.

    Raises InvalidInput, AlreadyExists, Conflict (a thousand are there), PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "adding hosts")
    spec = check(HostSpec, values)
    hosts = HostRepository(session)
    position = hosts.free_position(infrastructure.id)
    if position is None:
        raise Conflict(f"{infrastructure.name} has {MAX_HOSTS} hosts, and that is the limit")
    return hosts.add(Host(infrastructure_id=infrastructure.id, position=position, **spec.model_dump()))


def edit(session: Session, *, host: Host, actor: User | None = None, **values: Any) -> Host:
    """Change some fields; a new address without a new key forgets the pinned one, which is another machine's.

    Raises InvalidInput, AlreadyExists, Conflict, PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "editing hosts")
    current = {field: getattr(host, field) for field in _FIELDS}
    moved = any(field in values and values[field] != current[field] for field in ("address", "port"))
    if moved and "host_key" not in values:
        current["host_key"] = None
    spec = check(HostSpec, current | values)
    return HostRepository(session).change(host, **spec.model_dump())


def order(
    session: Session, *, infrastructure: Infrastructure, names: Sequence[str], actor: User | None = None
) -> Sequence[Host]:
    """Put all of its hosts, whose names these are, into this order, which is that of rollouts.

    A position belongs to one host at a time, so a host that is in the way waits in a free one. Raises InvalidInput,
    Conflict (there is no free position), PermissionDenied.
    """
    rights.require(actor, Role.OPERATOR, "ordering hosts")
    hosts = HostRepository(session)
    there = {host.name.lower(): host for host in hosts.of(infrastructure.id)}
    wanted = [name.lower() for name in check(HostOrder, {"names": names}).names]
    if sorted(wanted) != sorted(there):
        raise InvalidInput(f"the order names each host of {infrastructure.name} once, and no other")
    if wanted == list(there):
        return list(there.values())
    if len(there) == MAX_HOSTS:
        raise Conflict(f"{infrastructure.name} has {MAX_HOSTS} hosts: there is no room to put one aside")
    held = {host.position: host for host in there.values()}
    for position, name in enumerate(wanted):
        host = there[name]
        if host.position == position:
            continue
        if (other := held.pop(position, None)) is not None:
            aside = next(each for each in range(MAX_HOSTS - 1, -1, -1) if each not in held and each != position)
            held[aside] = hosts.change(other, position=aside)
        del held[host.position]
        held[position] = hosts.change(host, position=position)
    return hosts.of(infrastructure.id)


def remove(session: Session, *, host: Host, actor: User | None = None) -> None:
    """Remove a host; what deployments did to it stays known. Raises Conflict, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "removing hosts")
    HostRepository(session).delete(host)


def list_(session: Session, *, infrastructure: Infrastructure, actor: User | None = None) -> Sequence[Host]:
    """In the order of rollouts. Raises PermissionDenied."""
    rights.require(actor, Role.VIEWER, "listing hosts")
    return HostRepository(session).of(infrastructure.id)
