"""`ops channel`: ways to tell people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting, secretly
from worker.cli.output import out

if TYPE_CHECKING:
    from db.models import NotificationChannel

app = typer.Typer(help="Channels: ways to tell people of alerts. Their addresses and passwords are stored encrypted.")

Name = Annotated[str, typer.Argument(help="The channel's name.")]


@app.command(
    epilog="Example: ops channel add pager webhook --url https://pager.example.com/hook    "
    'Example: printf %s "discord://ID/TOKEN" | ops channel add chat apprise    '
    "Example: ops channel add mail smtp --host mail.example.com --from ops@example.com --to oncall@example.com"
)
def add(
    name: Name,
    kind: Annotated[str, typer.Argument(help="apprise, webhook or smtp.")],
    url: Annotated[str | None, typer.Option(help="webhook: where to; without it, from a prompt or stdin.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="webhook: NAME=VALUE of a header.")] = None,
    secret: Annotated[
        bool, typer.Option("--secret", help="webhook: read the key that signs from a prompt or stdin.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="smtp: the server.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="smtp: 587 by default, 465 with --tls tls.")
    ] = None,
    tls: Annotated[str, typer.Option(help="smtp: starttls, tls or none.")] = "starttls",
    username: Annotated[str | None, typer.Option(help="smtp: the password comes from a prompt or stdin.")] = None,
    sender: Annotated[str | None, typer.Option("--from", help="smtp: the sender's address.")] = None,
    to: Annotated[list[str] | None, typer.Option(help="smtp: a recipient; may be repeated.")] = None,
    template: Annotated[str | None, typer.Option(help="How one alert reads: text with $title, $severity ...")] = None,
    rate: Annotated[int, typer.Option(help="Messages a minute at most.")] = 10,
) -> None:
    """Add a channel. What is secret comes from a prompt or stdin: an Apprise address, a password, a key."""
    from db.services import channels
    from worker.cli.labels import matchers

    if kind == "apprise":
        config: dict[str, Any] = {"url": secretly.read("the address")[0]}
    elif kind == "webhook":
        wanted = (["the address"] if url is None else []) + (["the key that signs"] if secret else [])
        given = secretly.read(*wanted) if wanted else []
        config = {"url": url or given[0], "headers": matchers(header, "--header")}
        config |= {"secret": given[-1]} if secret else {}
    else:
        config = {"host": host, "port": port or (465 if tls == "tls" else 587), "tls": tls, "sender": sender, "to": to}
        config |= {"username": username, "password": secretly.read("the password")[0]} if username else {}
        config = {field: value for field, value in config.items() if value is not None}
    config |= {"template": template} if template else {}
    with acting.session(action="ops channel add") as (session, actor):
        made = channels.add(session, name=name, kind=kind, config=config, rate_limit=rate, actor=actor)
        shown = view(made)
    out.result(shown, f"channel {name} is added", f"next: ops channel test {name}, then ops route add {name}")


@app.command("list")
def list_() -> None:
    """List channels; what reaches them is never shown. Example: ops channel list"""
    from db.repositories import ChannelRepository

    with acting.session(write=False) as (session, _):
        items = [view(each) for each in ChannelRepository(session).list_(limit=1000).items]
    out.page("channels", ("name", "kind", "rate limit", "disabled at", "disabled because"), items, None)


@app.command()
def show(name: Name) -> None:
    """Show one channel and its routes; what reaches it is never shown. Example: ops channel show pager"""
    from db.repositories import ChannelRepository, RouteRepository
    from worker.cli import route

    with acting.session(write=False) as (session, _):
        found = ChannelRepository(session).require_by_name(name)
        routes = [each for each in RouteRepository(session).all_() if each.channel_id == found.id]
        shown = view(found) | {"routes": [route.view(each, found.name) for each in routes]}
    if out.json:
        out.record(shown)
    else:
        out.table(None, ("field", "value"), shown.items())


@app.command()
def edit(
    name: Name,
    new_name: Annotated[str | None, typer.Option("--name", help="Its new name.")] = None,
    rate: Annotated[int | None, typer.Option(help="Messages a minute at most.")] = None,
    template: Annotated[str | None, typer.Option(help="How one alert reads: text with $title, $severity ...")] = None,
    replace: Annotated[
        str | None, typer.Option("--replace", help="url, secret or password: read a new one from a prompt or stdin.")
    ] = None,
) -> None:
    """Change what is named; where it goes otherwise stays. Example: ops channel edit pager --rate 30"""
    from db.channels import SECRET_FIELDS
    from db.errors import InvalidInput
    from db.repositories import ChannelRepository
    from db.services import channels

    if new_name is None and rate is None and template is None and replace is None:
        raise InvalidInput("nothing to change is named", hint="ops channel edit --help")
    value = secretly.read(f"the new {replace}")[0] if replace else None
    with acting.session(action="ops channel edit") as (session, actor):
        found = ChannelRepository(session).require_by_name(name)
        config = None
        if replace is not None and replace not in SECRET_FIELDS[found.kind]:
            raise InvalidInput(
                f"--replace: of {found.kind.value} one can replace {', '.join(SECRET_FIELDS[found.kind])}"
            )
        if template is not None or replace is not None:
            config = channels.stored_config(found)
            config |= {"template": template} if template is not None else {}
            if replace is not None:
                config[replace] = value
                config["taken"] = {each: of for each, of in config.get("taken", {}).items() if each != replace}
        made = channels.edit(
            session, channel=found, name=new_name, rate_limit=rate, config=config, actor=actor
        )  # fmt: skip
        shown = view(made)
    out.result(shown, f"channel {name} is changed", f"next: ops channel test {shown['name']}")


@app.command()
def test(name: Name) -> None:
    """Send a message now, and say whether it was taken. Example: ops channel test pager"""
    from uuid import uuid4

    from db.repositories import ChannelRepository
    from db.services import channels, notifications, rights
    from db.services.notifications import Delivery
    from db.states import Role
    from tasks.channels import ChannelError
    from tasks.notifications import deliver

    with acting.session(action="ops channel test") as (session, actor):
        rights.require(actor, Role.OPERATOR, "testing channels")
        channel = ChannelRepository(session).require_by_name(name)
        items = tuple(notifications.sample(channel.name))
        delivery = Delivery(
            uuid4(), channel.id, channel.name, channel.kind, channels.open_config(channel), items
        )  # fmt: skip
    try:
        deliver(delivery)
    except ChannelError as error:
        out.result({"channel": name, "taken": False, "error": str(error)}, f"channel {name}: {error}")
        raise typer.Exit(1) from None
    out.result({"channel": name, "taken": True, "error": None}, f"channel {name} took the message")


@app.command()
def enable(name: Name) -> None:
    """Tell again, also what could not be told within the last day. Example: ops channel enable pager"""
    from db.repositories import ChannelRepository
    from db.services import channels

    with acting.session(action="ops channel enable") as (session, actor):
        channel = ChannelRepository(session).require_by_name(name)
        again = channels.enable(session, channel=channel, actor=actor)
    out.result({"channel": name, "again": again}, f"channel {name} is enabled; {again} notifications are tried again")


@app.command()
def disable(name: Name, because: Annotated[str, typer.Option(help="Why.")] = "by hand") -> None:
    """Tell nobody by it for now. Example: ops channel disable pager --because 'it moves house'"""
    from db.repositories import ChannelRepository
    from db.services import channels

    with acting.session(action="ops channel disable") as (session, actor):
        channel = ChannelRepository(session).require_by_name(name)
        channels.disable(session, channel=channel, because=because, actor=actor)
    out.result({"channel": name, "disabled": True}, f"channel {name} is disabled")


@app.command()
def rm(name: Name) -> None:
    """Remove a channel with its routes. Example: ops channel rm pager"""
    from db.repositories import ChannelRepository, RouteRepository
    from db.services import channels

    with acting.session(action="ops channel rm") as (session, actor):
        channel = ChannelRepository(session).require_by_name(name)
        routes = RouteRepository(session).all_()
        gone = sum(route.channel_id == channel.id for route in routes)
        channels.remove(session, channel=channel, actor=actor)
    said = f" with {gone} route{'s' if gone > 1 else ''}" if gone else ""
    out.result({"removed": name, "routes": gone}, f"channel {name} is removed{said}")
    if gone and gone == len(routes):
        out.note("no route is left: nobody is told of alerts; ops route add CHANNEL")


@app.command()
def key(name: Name) -> None:
    """Show the key that signs a webhook's messages, for its receiver; recorded. Example: ops channel key pager"""
    from db.repositories import ChannelRepository
    from db.services import channels

    with acting.session(action="ops channel key") as (session, actor):
        found = channels.show_key(
            session, channel=ChannelRepository(session).require_by_name(name), actor=actor
        )  # fmt: skip
    out.result({"channel": name, "key": found}, found)


def view(channel: NotificationChannel) -> dict[str, Any]:
    """A channel as it is shown: nothing of how it is reached."""
    fields = ("id", "name", "kind", "rate_limit", "disabled_at", "disabled_because", "created_at")
    return {field: getattr(channel, field) for field in fields}
