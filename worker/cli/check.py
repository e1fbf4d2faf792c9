"""`ops check`: what is looked at, and where it stands."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.application import pair_of
from worker.cli.check_config import config_of
from worker.cli.moments import seconds
from worker.cli.output import ago, out

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.models import MonitoringCheck

app = typer.Typer(help="Checks: what is looked at, and where it stands.")

Name = Annotated[str, typer.Argument(help="The check's name.")]
Kind = Annotated[str, typer.Argument(help="http, tcp, tls, dns, postgres, redis, celery, system or heartbeat.")]
Target = Annotated[str | None, typer.Argument(help="What is looked at: a URL, HOST:PORT, a name, a queue, a figure.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="FIELD=TEXT, or FIELD:=JSON, of the kind's settings.")]
Every = Annotated[str | None, typer.Option("--every", help="How often it runs: 30, 30s, 5m; 60 s by default.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds that a run may take; 5 by default.")]
Failures = Annotated[int | None, typer.Option(help="Runs in a row that make it down; 3 by default.")]
Successes = Annotated[int | None, typer.Option(help="Runs in a row that make it up again; 2 by default.")]
Retry = Annotated[str | None, typer.Option(help="How long until the next run after a failed one: 10, 10s, 1m.")]
Severity = Annotated[str | None, typer.Option(help="Of its alerts: low, medium, high (by default) or critical.")]
Label = Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE; may be repeated.")]
Public = Annotated[bool | None, typer.Option("--public/--private", help="Show it on the status page.")]
App = Annotated[str | None, typer.Option("--app", help="The application that it looks at.")]
Infra = Annotated[str | None, typer.Option("--infra", help="The infrastructure that it looks at.")]

#: How long `run-now` waits for somebody to run it, beside the run itself, in seconds.
PATIENCE_SECONDS = 30.0
TIMED_OUT = 124
EXIT_CODES = {"up": 0, "degraded": 0, "down": 1}


@app.command(epilog="Example: ops check add site http https://example.org/healthz --every 30 --set status=200-299")
def add(
    name: Name, kind: Kind, target: Target = None, set_: Set = None, every: Every = None, timeout: Timeout = None,
    failures: Failures = None, successes: Successes = None, retry: Retry = None, severity: Severity = None,
    label: Label = None, public: Public = None, app_: App = None, infra: Infra = None,
) -> None:  # fmt: skip
    """Add a check; it is yours, opens your secrets, and runs at once."""
    from db.services import checks

    values = _fields(every, timeout, failures, successes, retry, severity, label, public, {})
    values["config"] = config_of(kind, target, set_, {})
    with acting.session(action="ops check add") as (session, user):
        links = _links(session, app_, infra)
        made = checks.add(session, owner_id=user.id, actor=user, name=name, kind=kind, **values, **links)
        shown = view(made)
        token = made.ping_token
    lines = [f"check {name} is added", *(how_to_report(name, token) if token else [f"next: ops check run-now {name}"])]
    out.result(shown | ({"ping_token": token} if token else {}), *lines)


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="up, degraded, down, unknown or paused.")] = None,
    kind: Annotated[str | None, typer.Option(help="http, tcp, ...")] = None,
    label: Annotated[str | None, typer.Option(help="NAME=VALUE.")] = None,
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List checks, newest first. Example: ops check list --state down"""
    from db.repositories import CheckRepository
    from worker.cli import check_past

    with acting.session(write=False) as (session, _):
        wanted = pair_of(label) if label else None
        page = CheckRepository(session).search(state=state, kind=kind, label=wanted, limit=limit, before=before)
        items = [view(each) for each in page.items]
    for item in items:
        item["last_run"] = ago(item["last_run_at"])
        item["for"] = ago(item["since_at"]).removesuffix(" ago")
        item["latency"] = check_past.milliseconds(item["last_latency_seconds"])
        item["message"] = (item["last_message"] or "")[:80] or None
    columns = ("id", "name", "kind", "state", "for", "last run", "latency", "message")
    out.page("checks", columns, items, str(page.next) if page.next else None)


@app.command()
def show(name: Name) -> None:
    """Show one check. Example: ops check show site"""
    from db.repositories import CheckRepository
    from db.services import checks

    with acting.session(write=False) as (session, _):
        found = CheckRepository(session).require_by_name(name)
        shown = view(found) | {"config": {key: value for key, value in found.config.items() if value is not None}}
        shown |= checks.names(session, found=found)
    if out.json:
        out.record(shown)
    else:
        out.table(None, ("field", "value"), shown.items())


@app.command(epilog="Example: ops check edit site --every 15 --set degraded_seconds=0.5")
def edit(
    name: Name, target: Target = None, set_: Set = None, every: Every = None, timeout: Timeout = None,
    failures: Failures = None, successes: Successes = None, retry: Retry = None, severity: Severity = None,
    label: Label = None, public: Public = None, app_: App = None, infra: Infra = None,
) -> None:  # fmt: skip
    """Change what is named. One that looks at something else from now on starts anew."""
    from db.errors import InvalidInput
    from db.repositories import CheckRepository
    from db.services import checks

    with acting.session(action="ops check edit") as (session, user):
        found = CheckRepository(session).require_by_name(name)
        values = _fields(every, timeout, failures, successes, retry, severity, label, public, found.labels)
        if target is not None or set_:
            values["config"] = config_of(found.kind, target, set_, found.config)
        values |= _links(session, app_, infra)
        if not values:
            raise InvalidInput("nothing to change is named", hint="ops check edit --help")
        shown = view(checks.edit(session, found=found, actor=user, **values))
    out.result(shown, f"check {name} is changed")


@app.command()
def history(
    name: Name,
    results: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest results.")] = 60,
) -> None:
    """Show what a check has seen: newest results, uptime, latency, incidents. Example: ops check history site"""
    from db.repositories import CheckRepository
    from db.services import check_history
    from worker.cli import check_past

    with acting.session(write=False) as (session, _):
        found = CheckRepository(session).require_by_name(name)
        told = check_history.summary(session, found, results=results)
        shown = {"name": found.name, "state": found.standing.state, "since_at": found.standing.since_at} | told
    if out.json:
        out.record(shown)
    else:
        check_past.tell(shown)


@app.command("run-now")
def run_now(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for what it sees.")] = True,
) -> None:
    """Run a check now, by a worker, and say what it saw; exit code 1 when down. Example: ops check run-now site"""
    from db.connection import get_db_session
    from db.repositories import CheckRepository
    from db.services import checks

    with acting.session(action="ops check run-now") as (session, user):
        found = CheckRepository(session).require_by_name(name)
        checks.run_now(session, found=found, actor=user)
        before, patience = found.standing.last_run_at, found.timeout_seconds + PATIENCE_SECONDS
    if not wait:
        out.result({"name": name}, f"check {name} is due")
        return
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        with get_db_session(read_only=True) as session:
            shown = view(CheckRepository(session).require_by_name(name))
        if shown["last_run_at"] != before:
            _say(shown)
            raise typer.Exit(EXIT_CODES.get(shown["last_status"], 3))
        time.sleep(0.2)
    out.note("nobody has run it yet; `ops status` shows who hears the queue `checks`")
    raise typer.Exit(TIMED_OUT)


@app.command()
def pause(name: Name) -> None:
    """Run a check no more until it is resumed. Example: ops check pause site"""
    _change("pause", name, "is paused")


@app.command()
def resume(name: Name) -> None:
    """Run a paused check again. Example: ops check resume site"""
    _change("resume", name, "runs again")


@app.command()
def rm(name: Name) -> None:
    """Remove a check and its history. Example: ops check rm site"""
    from db.repositories import CheckRepository
    from db.services import checks

    with acting.session(action="ops check rm") as (session, user):
        checks.remove(session, found=CheckRepository(session).require_by_name(name), actor=user)
    out.result({"removed": name}, f"check {name} is removed")


def view(check: MonitoringCheck) -> dict[str, Any]:
    """A check with its standing as it is shown; of its settings nothing."""
    settings = (
        "id", "name", "kind", "interval_seconds", "timeout_seconds", "failure_threshold", "success_threshold",
        "retry_seconds", "severity", "labels", "public", "owner_id", "application_id", "infrastructure_id", "paused_at",
    )  # fmt: skip
    standing = (
        "state", "since_at", "is_flapping", "blind_at", "next_run_at", "last_run_at", "last_status",
        "last_latency_seconds", "last_message", "last_facts",
    )  # fmt: skip
    shown = {name: getattr(check, name) for name in settings}
    shown |= {name: getattr(check.standing, name) for name in standing}
    shown["is_soft"] = check.standing.seen is not None and check.standing.seen != check.standing.state
    latency = shown["last_latency_seconds"]
    shown["last_latency_seconds"] = None if latency is None else round(latency, 4)
    return shown


def how_to_report(name: str, token: object) -> list[str]:
    """What a heartbeat that was just added is to be told by."""
    return [
        f"next: ops heartbeat ping {name}, or from anywhere (HOST: where `ops serve` is reached):",
        f"      curl -fsS -m 10 --retry 5 http://HOST:8080/ping/{token}",
    ]


def _say(shown: dict[str, Any]) -> None:
    latency = shown["last_latency_seconds"]
    took = "" if latency is None else f" in {latency * 1000:.0f} ms"
    why = f": {shown['last_message']}" if shown["last_message"] else ""
    soft = f" (still {shown['state']}: not confirmed)" if shown["is_soft"] else ""
    out.result(shown, f"check {shown['name']}: {shown['last_status']}{took}{why}{soft}")


def _change(verb: str, name: str, done: str) -> None:
    from db.repositories import CheckRepository
    from db.services import checks

    with acting.session(action=f"ops check {verb}") as (session, user):
        found = CheckRepository(session).require_by_name(name)
        shown = view(getattr(checks, verb)(session, found=found, actor=user))
    out.result(shown, f"check {name} {done}")


def _links(session: Session, app_: str | None, infra: str | None) -> dict[str, Any]:
    from db.repositories import ApplicationRepository, InfrastructureRepository

    links: dict[str, Any] = {}
    if app_ is not None:
        links["application_id"] = ApplicationRepository(session).require_by_name(app_).id
    if infra is not None:
        links["infrastructure_id"] = InfrastructureRepository(session).require_by_name(infra).id
    return links


def _fields(
    every: str | None, timeout: float | None, failures: int | None, successes: int | None, retry: str | None,
    severity: str | None, label: list[str] | None, public: bool | None, labels: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    given = {
        "interval_seconds": seconds(every, "--every"), "timeout_seconds": timeout, "failure_threshold": failures,
        "success_threshold": successes, "retry_seconds": seconds(retry, "--retry"), "severity": severity,
        "public": public,
    }  # fmt: skip
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if label:
        values["labels"] = labels | dict(pair_of(each) for each in label)
    return values
