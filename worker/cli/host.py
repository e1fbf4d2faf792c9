"""`ops infra host`: the machines of an infrastructure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import out

if TYPE_CHECKING:
    from db.models import Host

app = typer.Typer(help="Hosts: the machines of an infrastructure, in the order of rollouts.")

Infra = Annotated[str, typer.Argument(metavar="INFRA", help="The infrastructure's name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The host's name.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Where its ssh server listens; 22 by default.")]
Key = Annotated[
    Path | None, typer.Option("--host-key", help="File with its public keys, as in /etc/ssh/ssh_host_*_key.pub.")
]


@app.command(epilog="Example: ops infra host add production web1 10.0.0.11 --host-key web1.pub")
def add(
    infra: Infra,
    name: Name,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Its name or IP address.")],
    port: Port = None,
    host_key: Key = None,
) -> None:
    """Add a host behind the others."""
    from db.repositories import InfrastructureRepository
    from db.services import hosts

    values: dict[str, Any] = {"name": name, "address": address} | _given(port, host_key)
    with acting.session(action="ops infra host add") as (session, user):
        place = InfrastructureRepository(session).require_by_name(infra)
        shown = view(hosts.add(session, infrastructure=place, actor=user, **values))
    out.result(shown, f"host {name} is added to {infra}", *_to_pin(infra, shown))


@app.command("list")
def list_(infra: Infra) -> None:
    """List the hosts in their order. Example: ops infra host list production"""
    from db.repositories import InfrastructureRepository
    from db.services import hosts

    with acting.session(write=False) as (session, user):
        place = InfrastructureRepository(session).require_by_name(infra)
        items = [view(each) for each in hosts.list_(session, infrastructure=place, actor=user)]
    out.page("hosts", ("position", "name", "address", "port", "pinned"), items, None)


@app.command()
def show(infra: Infra, name: Name) -> None:
    """Show one host. Example: ops infra host show production web1"""
    with acting.session(write=False) as (session, _):
        shown = view(_require(session, infra, name))
    if out.json:
        out.record(shown)
    else:
        out.table(None, ("field", "value"), shown.items())


@app.command(epilog="Example: ops infra host edit production web1 --address 10.0.0.12")
def edit(
    infra: Infra,
    name: Name,
    address: Annotated[str | None, typer.Option(help="Its name or IP address; the pinned key is forgotten.")] = None,
    port: Port = None,
    host_key: Key = None,
    rename: Annotated[str | None, typer.Option(help="Its new name.")] = None,
) -> None:
    """Change what is named."""
    from db.errors import InvalidInput
    from db.services import hosts

    values = _given(port, host_key)
    values |= {key: value for key, value in (("address", address), ("name", rename)) if value is not None}
    if not values:
        raise InvalidInput("nothing to change is named", hint="ops infra host edit --help")
    with acting.session(action="ops infra host edit") as (session, user):
        shown = view(hosts.edit(session, host=_require(session, infra, name), actor=user, **values))
    out.result(shown, f"host {shown['name']} is changed", *_to_pin(infra, shown))


@app.command()
def order(
    infra: Infra, names: Annotated[list[str], typer.Argument(metavar="NAME...", help="All of its hosts, in order.")]
) -> None:
    """Put the hosts into the order of rollouts. Example: ops infra host order production web2 web1"""
    from db.repositories import InfrastructureRepository
    from db.services import hosts

    with acting.session(action="ops infra host order") as (session, user):
        place = InfrastructureRepository(session).require_by_name(infra)
        ordered = [host.name for host in hosts.order(session, infrastructure=place, names=names, actor=user)]
    out.result({"hosts": ordered}, f"{infra} gets releases in this order: {', '.join(ordered)}")


@app.command()
def rm(infra: Infra, name: Name) -> None:
    """Remove a host; what deployments did to it stays known. Example: ops infra host rm production web1"""
    from db.services import hosts

    with acting.session(action="ops infra host rm") as (session, user):
        hosts.remove(session, host=_require(session, infra, name), actor=user)
    out.result({"removed": name}, f"host {name} is removed from {infra}")


@app.command(epilog="Example: ops infra host scan production web1 --trust")
def scan(
    infra: Infra,
    name: Name,
    trust: Annotated[bool, typer.Option("--trust", help="Pin the key that it shows now.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=300, help="Seconds to wait for it.")] = 10.0,
) -> None:
    """Ask the host for its key, and show it; compare the fingerprint with what the host itself says
    (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there). Only --trust pins it."""
    from db.errors import OpsError
    from db.services import hosts
    from tasks.drivers.hostkeys import ScanError
    from tasks.drivers.hostkeys import scan as look

    with acting.session(write=False) as (session, _):
        found = _require(session, infra, name)
        address, port, pinned = found.address, found.port, (found.host_key or "").splitlines()
    try:
        key, fingerprint = look(address, port, timeout)
    except ScanError as error:
        raise OpsError(f"{name} ({address} port {port}): {error}") from None
    is_pinned = key in pinned
    if trust and not is_pinned:
        with acting.session(action="ops infra host scan --trust") as (session, user):
            hosts.edit(session, host=_require(session, infra, name), actor=user, host_key=key)
    shown = {
        "name": name, "host_key": key, "fingerprint": fingerprint, "was_pinned": is_pinned,
        "pinned": is_pinned or trust,
    }  # fmt: skip
    lines = [f"{name} shows {key.split()[0]} {fingerprint}"]
    if is_pinned:
        lines.append("it is the pinned one")
    elif trust:
        lines.append("it is pinned now" + ("; another one was before" if pinned else ""))
    else:
        lines.append("ANOTHER KEY IS PINNED for this host" if pinned else "no key is pinned for this host")
        lines.append(f"next, once you have compared it: ops infra host scan {infra} {name} --trust")
    out.result(shown, *lines)


def view(host: Host) -> dict[str, Any]:
    """A host as it is shown."""
    return {
        "position": host.position, "name": host.name, "address": host.address, "port": host.port,
        "pinned": host.host_key is not None, "host_key": host.host_key, "updated_at": host.updated_at,
    }  # fmt: skip


def _to_pin(infra: str, shown: dict[str, Any]) -> list[str]:
    """What is to be done before anything is deployed to a host whose key is not known, or not known any more."""
    if shown["pinned"]:
        return []
    return [f"next: ops infra host scan {infra} {shown['name']}   (no key is pinned: nothing is deployed to it before)"]


def _require(session: Any, infra: str, name: str) -> Host:
    from db.repositories import HostRepository, InfrastructureRepository

    return HostRepository(session).require_by_name(InfrastructureRepository(session).require_by_name(infra), name)


def _given(port: int | None, host_key: Path | None) -> dict[str, Any]:
    from db.errors import InvalidInput

    values: dict[str, Any] = {} if port is None else {"port": port}
    if host_key is not None:
        try:
            values["host_key"] = host_key.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{host_key} cannot be read: {getattr(error, 'strerror', 'no text')}") from None
    return values
