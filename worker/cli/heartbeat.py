"""`ops heartbeat`: what must report by itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worker.cli import acting
from worker.cli.check import Name, how_to_report, view
from worker.cli.moments import seconds
from worker.cli.output import out

app = typer.Typer(help="Heartbeats: what must report by itself; otherwise they are checks.")


@app.command(epilog="Example: ops heartbeat add backup --cron '30 2 * * *' --timezone Europe/Berlin --grace 1800")
def add(
    name: Name,
    period: Annotated[str | None, typer.Option(help="It reports every so often: 90, 15m, 1d.")] = None,
    cron: Annotated[str | None, typer.Option(help="It reports when this cron line says.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of the cron line; UTC by default.")] = None,
    grace: Annotated[str | None, typer.Option(help="How late it may be: 90, 30m; 60 s by default.")] = None,
    severity: Annotated[str | None, typer.Option(help="Of its alerts: low, medium, high or critical.")] = None,
) -> None:
    """Add something that must report: by `ops heartbeat ping NAME`, or by asking for /ping/TOKEN."""
    from db.errors import InvalidInput
    from db.services import checks

    if (period is None) == (cron is None):
        raise InvalidInput("say when it reports: either --period 1d or --cron '30 2 * * *'")
    given = {
        "period_seconds": seconds(period, "--period"), "cron": cron, "timezone": timezone,
        "grace_seconds": seconds(grace, "--grace"),
    }  # fmt: skip
    values: dict[str, Any] = {"config": {field: value for field, value in given.items() if value is not None}}
    if severity is not None:
        values["severity"] = severity
    with acting.session(action="ops heartbeat add") as (session, user):
        made = checks.add(session, owner_id=user.id, actor=user, name=name, kind="heartbeat", **values)
        shown = view(made) | {"ping_token": made.ping_token}
    out.result(shown, f"heartbeat {name} is added", *how_to_report(name, shown["ping_token"]))


@app.command()
def token(name: Name) -> None:
    """Show what a heartbeat reports by, for whatever is to report; recorded. Example: ops heartbeat token backup"""
    from db.repositories import CheckRepository
    from db.services import checks

    with acting.session(action="ops heartbeat token") as (session, user):
        shown = checks.show_token(session, found=CheckRepository(session).require_by_name(name), actor=user)
    out.result({"name": name, "ping_token": shown}, str(shown))


@app.command()
def ping(
    name: Name,
    fail: Annotated[bool, typer.Option("--fail", help="Say that it failed.")] = False,
    start: Annotated[bool, typer.Option("--start", help="Say that it begins.")] = False,
) -> None:
    """Report for a heartbeat. Example: ./backup.sh && ops heartbeat ping backup || ops heartbeat ping backup --fail"""
    from db.errors import InvalidInput
    from db.repositories import CheckRepository
    from db.services import checks

    if fail and start:
        raise InvalidInput("either --fail or --start")
    signal = "fail" if fail else "start" if start else "ok"
    with acting.session(action="ops heartbeat ping") as (session, user):
        checks.ping(session, found=CheckRepository(session).require_by_name(name), signal=signal, actor=user)
    out.result({"name": name, "signal": signal}, f"heartbeat {name}: {signal}")
