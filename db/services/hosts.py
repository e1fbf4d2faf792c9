"""Hosts of an infrastructure: registered, edited, removed; their keys pinned when somebody says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from db.errors import Conflict
from db.models import Host, Infrastructure, User
from db.models.host import MAX_HOSTS
from db.repositories import HostRepository
from db.rollouts import HostSpec
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


def remove(session: Session, *, host: Host, actor: User | None = None) -> None:
    """Remove a host; what deployments did to it stays known. Raises Conflict, PermissionDenied."""
    rights.require(actor, Role.OPERATOR, "removing hosts")
    HostRepository(session).delete(host)


def list_(session: Session, *, infrastructure: Infrastructure, actor: User | None = None) -> Sequence[Host]:
    """In the order of rollouts. Raises PermissionDenied."""
    rights.require(actor, Role.VIEWER, "listing hosts")
    return HostRepository(session).of(infrastructure.id)
