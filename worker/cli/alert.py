"""`ops alert`: what is wrong, and who looks after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.ids import number
from worker.cli.moments import later
from worker.cli.output import ago, out, when

if TYPE_CHECKING:
    from db.models import AlertEvent, MonitoringAlert, Notification

app = typer.Typer(help="Alerts: what is wrong, and who looks after it.")

Id = Annotated[str, typer.Argument(help="The alert's number.")]


@app.command("list")
def list_(
    status: Annotated[
        str | None, typer.Option(help="pending, firing or resolved; those not resolved by default.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List open alerts, newest first. Example: ops alert list --all"""
    from db.repositories import MonitoringAlertRepository

    with acting.session(write=False) as (session, _):
        alerts = MonitoringAlertRepository(session)
        if status is None and not every:
            page = alerts.list_open(limit=limit, before=before)
        else:
            page = alerts.search(status=status, limit=limit, before=before)
        names = _names(session, page.items)
    items = [view(each, names) for each in page.items]
    if not out.json:
        for item in items:
            item["since"] = ago(item["fired_at"] or item["started_at"])
            item["looked_after"] = item["assigned_to"] or item["acknowledged_by"]
    columns = ("id", "status", "severity", "title", "since", "looked after")
    out.page("open alerts" if not every else "alerts", columns, items, str(page.next) if page.next else None)


@app.command()
def show(id: Id) -> None:
    """Show an alert and its timeline. Example: ops alert show 3"""
    from db.repositories import AlertEventRepository, MonitoringAlertRepository, NotificationRepository

    with acting.session(write=False) as (session, _):
        alert = MonitoringAlertRepository(session).require(number(id, "alert"))
        shown = view(alert, _names(session, [alert]))
        events = [_event(each) for each in AlertEventRepository(session).list_(alert.id)]
        told = [_told(each) for each in reversed(NotificationRepository(session).of_alert(alert.id).items)]
        channels = _channels(session, {each["channel_id"] for each in told})
    for each in told:
        each["channel"] = channels.get(each["channel_id"])
    if out.json:
        out.record(shown | {"timeline": events, "notifications": told})
        return
    out.table(None, ("field", "value"), ((name, value) for name, value in shown.items() if value not in (None, {})))
    rows = [(when(event["at"]), event["kind"], event["actor"], event["message"]) for event in events]
    out.table("timeline", ("at", "what", "who", "details"), rows)
    waiting = [each for each in told if each["state"] not in ("sent",)]
    if waiting:
        rows = [(each["transition"], each["channel"], each["state"], each["error"]) for each in waiting]
        out.table("not delivered", ("transition", "channel", "state", "why"), rows)


@app.command()
def ack(id: Id) -> None:
    """Say that you look after it: it is not repeated any more. Example: ops alert ack 3"""
    from db.services import alerts

    with acting.session(action="ops alert ack") as (session, actor):
        alert = alerts.acknowledge(session, alert_id=number(id, "alert"), actor=actor)
        shown = {"id": alert.id, "acknowledged_by": actor.username}
    out.result(shown, f"alert {shown['id']} is acknowledged by {actor.username}")


@app.command()
def assign(
    id: Id,
    user: Annotated[str | None, typer.Argument(help="Who looks after it; you by default.")] = None,
    nobody: Annotated[bool, typer.Option("--nobody", help="Take it from whoever has it.")] = False,
) -> None:
    """Say who is to look after it. Example: ops alert assign 3 alice"""
    from db.repositories import UserRepository
    from db.services import alerts

    with acting.session(action="ops alert assign") as (session, actor):
        found = UserRepository(session).require_by_username(user) if user else actor
        alerts.assign(session, alert_id=number(id, "alert"), user=None if nobody else found, actor=actor)
    name = "nobody" if nobody else found.username
    out.result({"id": number(id, "alert"), "assigned_to": None if nobody else name}, f"alert {id} is {name}'s")


@app.command()
def note(id: Id, text: Annotated[str, typer.Argument(help="What others should know.")]) -> None:
    """Write a line into its timeline. Example: ops alert note 3 "the provider works on it" """
    from db.services import alerts

    with acting.session(action="ops alert note") as (session, actor):
        alerts.note(session, alert_id=number(id, "alert"), text=text, actor=actor)
    out.result({"id": number(id, "alert"), "note": text}, f"noted on alert {id}")


@app.command()
def silence(
    id: Id,
    duration: Annotated[str, typer.Option("--for", help="How long: 30m, 12h, 7d.")] = "2h",
    comment: Annotated[str | None, typer.Option(help="Why.")] = None,
) -> None:
    """Tell nobody of it, or of one like it, for a while. Example: ops alert silence 3 --for 2h"""
    from db.services import alerts

    ends_at = later(duration, "--for")
    assert ends_at is not None
    with acting.session(action="ops alert silence") as (session, actor):
        made = alerts.silence(session, alert_id=number(id, "alert"), ends_at=ends_at, comment=comment, actor=actor)
        shown = {"id": made.id, "matchers": made.matchers, "ends_at": made.ends_at}
    out.result(shown, f"silence {shown['id']} holds until {when(ends_at)}", f"next: ops silence end {shown['id']}")


@app.command()
def resolve(id: Id) -> None:
    """Close it by hand; it is raised anew when it happens again. Example: ops alert resolve 3"""
    from db.services import alerts

    with acting.session(action="ops alert resolve") as (session, actor):
        alert = alerts.resolve(session, alert_id=number(id, "alert"), actor=actor)
        shown = {"id": alert.id, "status": alert.status}
    out.result(shown, f"alert {shown['id']} is resolved")


def view(alert: MonitoringAlert, names: dict[int, str]) -> dict[str, Any]:
    """An alert as it is shown; ``names`` are those of users."""
    fields = (
        "id", "status", "severity", "alert_type", "title", "message", "labels", "current_value", "threshold_value",
        "deployment_id", "application_id", "infrastructure_id", "started_at", "fired_at", "acknowledged_at",
        "resolved_at",
    )  # fmt: skip
    people = {
        "acknowledged_by": names.get(alert.acknowledged_by_id or 0),
        "assigned_to": names.get(alert.assigned_to_id or 0),
        "resolved_by": names.get(alert.resolved_by_id or 0),
    }
    return {field: getattr(alert, field) for field in fields} | people


def _names(session: Any, alerts: Any) -> dict[int, str]:
    from sqlalchemy import select

    from db.models import User

    wanted = {each for a in alerts for each in (a.acknowledged_by_id, a.assigned_to_id, a.resolved_by_id) if each}
    if not wanted:
        return {}
    return {row.id: row.username for row in session.execute(select(User.id, User.username).where(User.id.in_(wanted)))}


def _channels(session: Any, wanted: set[int]) -> dict[int, str]:
    from sqlalchemy import select

    from db.models import NotificationChannel as Channel

    return {row.id: row.name for row in session.execute(select(Channel.id, Channel.name).where(Channel.id.in_(wanted)))}


def _event(event: AlertEvent) -> dict[str, Any]:
    return {"at": event.at, "kind": event.kind, "actor": event.actor, "message": event.message}


def _told(told: Notification) -> dict[str, Any]:
    fields = ("transition", "sequence", "channel_id", "state", "job_id", "error", "created_at", "finished_at")
    return {field: getattr(told, field) for field in fields}
