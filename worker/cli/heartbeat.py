"""`ops heartbeat`: what must report by itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worker.cli import acting
from worker.cli.check import Name, view
from worker.cli.output import out

app = typer.Typer(help="Heartbeats: what must report by itself; otherwise they are checks.")


@app.command(epilog="Example: ops heartbeat add backup --cron '30 2 * * *' --timezone Europe/Berlin --grace 1800")
def add(
    name: Name,
    period: Annotated[int | None, typer.Option(help="It reports every so many seconds.")] = None,
    cron: Annotated[str | None, typer.Option(help="It reports when this cron line says.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of the cron line; UTC by default.")] = None,
    grace: Annotated[int | None, typer.Option(help="Seconds that it may be late; 60 by default.")] = None,
    severity: Annotated[str | None, typer.Option(help="Of its alerts: low, medium, high or critical.")] = None,
) -> None:
    """Add something that must report: by `ops heartbeat ping NAME`, or by asking for /ping/TOKEN."""
    from db.services import checks

    given = {"period_seconds": period, "cron": cron, "timezone": timezone, "grace_seconds": grace}
    values: dict[str, Any] = {"config": {field: value for field, value in given.items() if value is not None}}
    if severity is not None:
        values["severity"] = severity
    with acting.session(action="ops heartbeat add") as (session, user):
        made = checks.add(session, owner_id=user.id, actor=user, name=name, kind="heartbeat", **values)
        shown = view(made) | {"ping_token": made.ping_token}
    out.result(shown, f"heartbeat {name} is added; it reports to /ping/{shown['ping_token']}, or here:",
               f"next: ops heartbeat ping {name}")  # fmt: skip


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
