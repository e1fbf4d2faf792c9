"""`ops infra`: where things are deployed to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting, host
from worker.cli.application import json_of, pair_of
from worker.cli.output import out

if TYPE_CHECKING:
    from db.models import Infrastructure

app = typer.Typer(help="Infrastructure: where things are deployed to.")
app.add_typer(host.app, name="host", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The infrastructure's name.")]
Provider = Annotated[str | None, typer.Option(help="Who provides it; `local` by default.")]
Region = Annotated[str | None, typer.Option(help="Where it is.")]
Env = Annotated[str | None, typer.Option("--environment", help="dev, staging or production.")]
Driver = Annotated[
    str | None, typer.Option(help="How deployments get there: command (runs here, by default), ssh, docker or webhook.")
]
Given = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of the driver's settings, as text or JSON."),
]
Setting = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for every command run there.")]


@app.command(epilog="Example: ops infra add local --environment dev")
def add(
    name: Name, provider: Provider = None, region: Region = None, environment: Env = None, driver: Driver = None,
    env: Setting = None, given: Given = None,
) -> None:  # fmt: skip
    """Register an infrastructure; it is yours, and deployments there open your secrets."""
    from db.services import infrastructure

    values = _fields(provider, region, environment, driver, env, given, {})
    with acting.session(action="ops infra add") as (session, user):
        made = infrastructure.register(session, owner_id=user.id, actor=user, name=name, **values)
        shown = view(made)
    out.result(shown, f"infrastructure {made.name} is registered", f"next: ops deploy APP VERSION --to {made.name}")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List infrastructure, newest first. Example: ops infra list"""
    from db.repositories import InfrastructureRepository

    with acting.session(write=False) as (session, _):
        page = InfrastructureRepository(session).list_(limit=limit, before=before)
    columns = ("id", "name", "environment", "driver", "provider", "region", "owner id")
    out.page("infrastructure", columns, [view(each) for each in page.items], str(page.next) if page.next else None)


@app.command()
def show(name: Name) -> None:
    """Show one infrastructure. Example: ops infra show local"""
    from db.repositories import InfrastructureRepository

    with acting.session(write=False) as (session, _):
        shown = view(InfrastructureRepository(session).require_by_name(name))
    if out.json:
        out.record(shown)
    else:
        out.table(None, ("field", "value"), shown.items())


@app.command(epilog="Example: ops infra edit local --environment staging")
def edit(
    name: Name, provider: Provider = None, region: Region = None, environment: Env = None, driver: Driver = None,
    env: Setting = None, given: Given = None,
) -> None:  # fmt: skip
    """Change what is named."""
    from db.errors import InvalidInput
    from db.repositories import InfrastructureRepository
    from db.services import infrastructure

    if all(value is None for value in (provider, region, environment, driver, env, given)):
        raise InvalidInput("nothing to change is named", hint="ops infra edit --help")
    with acting.session(action="ops infra edit") as (session, user):
        found = InfrastructureRepository(session).require_by_name(name)
        values = _fields(provider, region, environment, driver, env, given, found.settings)
        shown = view(infrastructure.edit(session, infrastructure=found, actor=user, **values))
    out.result(shown, f"infrastructure {name} is changed")


@app.command()
def rm(name: Name) -> None:
    """Remove an infrastructure that was never deployed to. Example: ops infra rm local"""
    from db.repositories import InfrastructureRepository
    from db.services import infrastructure

    with acting.session(action="ops infra rm") as (session, user):
        infrastructure.remove(
            session, infrastructure=InfrastructureRepository(session).require_by_name(name), actor=user
        )
    out.result({"removed": name}, f"infrastructure {name} is removed")


def view(infrastructure: Infrastructure) -> dict[str, Any]:
    """An infrastructure as it is shown."""
    return {
        "id": infrastructure.id,
        "name": infrastructure.name,
        "provider": infrastructure.provider,
        "region": infrastructure.region,
        "environment": infrastructure.environment,
        "driver": infrastructure.driver,
        "settings": infrastructure.settings,
        "owner_id": infrastructure.owner_id,
        "updated_at": infrastructure.updated_at,
    }


def _fields(
    provider: str | None, region: str | None, environment: str | None, driver: str | None, env: list[str] | None,
    given: list[str] | None, settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    named = {"provider": provider, "region": region, "environment": environment, "driver": driver}
    values: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if env:
        variables = settings.get("environment", {}) | dict(pair_of(each) for each in env)
        settings = values["settings"] = settings | {"environment": variables}
    if given:
        values["settings"] = settings | {name: json_of(name, text) for name, text in map(pair_of, given)}
    return values
