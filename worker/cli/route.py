"""`ops route`: which alerts a channel tells of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.ids import number
from worker.cli.labels import matchers, say
from worker.cli.moments import span
from worker.cli.output import duration, out

if TYPE_CHECKING:
    from db.models import NotificationRoute

app = typer.Typer(help="Routes: which alerts a channel tells of. Without one it tells of none.")


@app.command(epilog="Example: ops route add pager --severity high --match environment=production")
def add(
    channel: Annotated[str, typer.Argument(help="The channel's name.")],
    severity: Annotated[str, typer.Option(help="low, medium, high or critical: this and above.")] = "low",
    match: Annotated[list[str] | None, typer.Option(help="LABEL=VALUE, with * for anything; all must match.")] = None,
    group_by: Annotated[list[str] | None, typer.Option(help="A label: one message for each of its values.")] = None,
    wait: Annotated[str, typer.Option(help="How long the first waits for others.")] = "30s",
    repeat: Annotated[str, typer.Option(help="How often what nobody acknowledges is repeated; 0: never.")] = "4h",
) -> None:
    """Send alerts to a channel."""
    from db.repositories import ChannelRepository
    from db.services import channels

    values: dict[str, Any] = {
        "severity": severity, "matchers": matchers(match), "group_by": group_by or [],
        "wait_seconds": int(span(wait, "--wait").total_seconds()),
        "repeat_seconds": int(span(repeat, "--repeat").total_seconds()),
    }  # fmt: skip
    with acting.session(action="ops route add") as (session, actor):
        found = ChannelRepository(session).require_by_name(channel)
        made = channels.add_route(session, channel=found, actor=actor, **values)
        shown = view(made, found.name)
    out.result(shown, f"route {made.id}: {say(made.matchers)}, {severity} and above, goes to {found.name}")


@app.command("list")
def list_() -> None:
    """List routes in the order in which they are looked at. Example: ops route list"""
    from db.repositories import ChannelRepository, RouteRepository

    with acting.session(write=False) as (session, _):
        names = {each.id: each.name for each in ChannelRepository(session).list_(limit=1000).items}
        items = [view(each, names.get(each.channel_id, "?")) for each in RouteRepository(session).all_()]
    if not out.json:
        for item in items:
            item |= {"matches": say(item["matchers"]), "wait": duration(item["wait_seconds"])}
            item["repeat"] = duration(item["repeat_seconds"]) if item["repeat_seconds"] else "never"
    out.page("routes", ("id", "channel", "severity", "matches", "group by", "wait", "repeat"), items, None)


@app.command()
def rm(id: Annotated[str, typer.Argument(help="The route's number.")]) -> None:
    """Remove a route. Example: ops route rm 2"""
    from db.services import channels

    with acting.session(action="ops route rm") as (session, actor):
        channels.remove_route(session, route_id=number(id, "route"), actor=actor)
    out.result({"removed": number(id, "route")}, f"route {id} is removed")


def view(route: NotificationRoute, channel: str) -> dict[str, Any]:
    """A route as it is shown."""
    fields = ("id", "severity", "matchers", "group_by", "wait_seconds", "repeat_seconds")
    return {"channel": channel} | {field: getattr(route, field) for field in fields}
