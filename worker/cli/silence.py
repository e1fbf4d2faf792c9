"""`ops silence` and `ops maintenance`: when nobody is told, and when nothing is decided."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.ids import number
from worker.cli.labels import matchers, say
from worker.cli.moments import later
from worker.cli.output import out, when

if TYPE_CHECKING:
    from db.models import MaintenanceWindow, Silence

app = typer.Typer(help="Silences: alerts that nobody is told of for a while.")
maintenance = typer.Typer(help="Maintenance: what is worked on raises and resolves nothing until that is over.")

Match = Annotated[
    list[str], typer.Option("--match", help="LABEL=VALUE, with * for anything; alert_type and severity too.")
]
For = Annotated[str, typer.Option("--for", help="How long: 30m, 12h, 7d; or until when: 2026-11-23T15:00.")]
From = Annotated[str | None, typer.Option("--from", help="When it begins: 2h from now, or a time; now by default.")]
Limit = Annotated[int, typer.Option(help="Rows per page.")]
Before = Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")]
Every = Annotated[bool, typer.Option("--all", help="Ended ones too.")]


@app.command(epilog="Example: ops silence add --match check=web* --for 2h --comment 'moving house'")
def add(match: Match, duration: For = "2h", comment: Annotated[str | None, typer.Option(help="Why.")] = None) -> None:
    """Tell nobody of alerts that match, for a while. They fire and resolve nevertheless."""
    from db.services import silences

    ends_at = later(duration, "--for")
    assert ends_at is not None
    with acting.session(action="ops silence add") as (session, actor):
        made = silences.silence(session, matchers=matchers(match), ends_at=ends_at, comment=comment, actor=actor)
        shown = view(made)
    out.result(shown, f"silence {made.id} of {say(made.matchers)} holds until {when(ends_at)}")


@app.command("list")
def list_(every: Every = False, limit: Limit = 50, before: Before = None) -> None:
    """List silences that hold or will. Example: ops silence list"""
    from db.repositories import SilenceRepository

    _list(SilenceRepository, "silences", ("id", "matchers", "starts at", "ends at", "comment"), every, limit, before)


@app.command()
def end(id: Annotated[str, typer.Argument(help="The silence's number.")]) -> None:
    """Be told again. Example: ops silence end 2"""
    from db.services import silences

    with acting.session(action="ops silence end") as (session, actor):
        shown = view(silences.end_silence(session, silence_id=number(id, "silence"), actor=actor))
    out.result(shown, f"silence {shown['id']} has ended")


@maintenance.command("add", epilog="Example: ops maintenance add 'new disks' --match application=web --for 2h")
def add_window(
    title: Annotated[str, typer.Argument(help="What is done; shown to others.")],
    match: Match,
    duration: For = "1h",
    begins: From = None,
) -> None:
    """Plan maintenance: what matches raises and resolves nothing; at its end, what is so then decides."""
    from db.services import silences

    starts_at = later(begins, "--from") or datetime.now(UTC)
    ends_at = later(duration, "--for")
    assert ends_at is not None
    if begins is not None and duration[-1:] in "smhdw":
        ends_at = starts_at + (ends_at - datetime.now(UTC))
    with acting.session(action="ops maintenance add") as (session, actor):
        made = silences.maintain(
            session, title=title, matchers=matchers(match), starts_at=starts_at, ends_at=ends_at, actor=actor
        )
        shown = view(made)
    out.result(shown, f"maintenance {made.id} of {say(made.matchers)} from {when(starts_at)} until {when(ends_at)}")


@maintenance.command("list")
def list_windows(every: Every = False, limit: Limit = 50, before: Before = None) -> None:
    """List maintenance that goes on or is planned. Example: ops maintenance list"""
    from db.repositories import MaintenanceWindowRepository

    columns = ("id", "title", "matchers", "starts at", "ends at")
    _list(MaintenanceWindowRepository, "maintenance", columns, every, limit, before)


@maintenance.command("end")
def end_window(id: Annotated[str, typer.Argument(help="The window's number.")]) -> None:
    """The work is done: decide by what is so now. Example: ops maintenance end 2"""
    from db.services import silences

    with acting.session(action="ops maintenance end") as (session, actor):
        shown = view(silences.end_maintenance(session, window_id=number(id, "maintenance"), actor=actor))
    out.result(shown, f"maintenance {shown['id']} has ended")


def view(window: Silence | MaintenanceWindow) -> dict[str, Any]:
    """A silence or a window as it is shown."""
    fields = ("id", "title", "matchers", "comment", "starts_at", "ends_at", "ended_at", "created_by_id")
    return {field: getattr(window, field) for field in fields if hasattr(window, field)}


def _list(repository: Any, noun: str, columns: tuple[str, ...], every: bool, limit: int, before: int | None) -> None:
    with acting.session(write=False) as (session, _):
        rows = repository(session)
        model = rows.model
        where = [] if every else [model.ends_at > datetime.now(UTC), model.ended_at.is_(None)]
        page = rows.list_(*where, limit=limit, before=before)
        items = [view(each) for each in page.items]
    if not out.json:
        for item in items:
            item["matchers"] = say(item["matchers"])
    out.page(noun, (*columns, "ended at") if every else columns, items, str(page.next) if page.next else None)
