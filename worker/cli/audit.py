"""`ops audit`: what happened, who did it, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting, seals
from worker.cli.moments import moment
from worker.cli.output import out, show

if TYPE_CHECKING:
    from db.models import AuditLog
    from db.repositories import AuditLogRepository

app = typer.Typer(help="The audit trail.")

COLUMNS = (
    "id", "at", "action", "resource_type", "resource_id", "actor_type", "actor", "actor_id", "client", "db_user",
    "ip_address", "user_agent", "request_id", "task_id", "changes", "details",
)  # fmt: skip

Since = Annotated[str | None, typer.Option(help="30m, 12h, 7d, or a time.")]
Until = Annotated[str | None, typer.Option(help="As --since.")]
Limit = Annotated[int, typer.Option(help="Rows per page; with --csv, rows in all.")]
Before = Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")]
Csv = Annotated[bool, typer.Option("--csv", help="Comma-separated values for a spreadsheet.")]


@app.callback()
def audit() -> None:
    """The audit trail."""


seals.register(app)


@app.command(epilog="Example: ops audit search --resource deployment:42 --changed status --to failed --since 7d")
def search(
    resource: Annotated[str | None, typer.Option(help="TYPE or TYPE:ID, for example deployment:42.")] = None,
    actor: Annotated[str | None, typer.Option(help="Who did it.")] = None,
    action: Annotated[str | None, typer.Option(help="What was done, for example job.failed or `secret.*`.")] = None,
    task: Annotated[str | None, typer.Option(help="By which job.")] = None,
    changed: Annotated[str | None, typer.Option(help="Which field was changed.")] = None,
    to: Annotated[str | None, typer.Option(help="To which value: text, a number, true, false or null.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    before: Before = None,
    csv: Csv = False,
) -> None:
    """Search the trail, newest first."""
    from db.errors import InvalidInput
    from db.repositories import AuditLogRepository
    from worker.cli.ids import job_id

    if to is not None and changed is None:
        raise InvalidInput("--to is the value of a field: say which, with --changed")
    asked = {
        "resource": resource, "actor": actor, "action": action, "task_id": None if task is None else job_id(task),
        "changed": changed, "to": _values(to), "since": moment(since, "--since"), "until": moment(until, "--until"),
    }  # fmt: skip
    with acting.session(write=False) as (session, _):
        found = AuditLogRepository(session)
        if csv:
            _export(found, asked, limit, before)
            return
        page = found.search(limit=limit, before=before, **asked)
    items = [view(entry) for entry in page.items]
    if out.json:
        out.record({"items": items, "next": page.next})
        return
    if not items:
        out.line("no entries")
        return
    rows = ([i["id"], i["at"], i["action"], f"{i['resource']}", i["actor"], say(i)] for i in items)
    out.table(None, ("id", "at", "action", "resource", "actor", "what"), rows)
    if page.next:
        out.line(f"more: --before {page.next}", style="dim")


@app.command(epilog="Example: ops audit opened github/token --since 30d")
def opened(
    name: Annotated[str, typer.Argument(metavar="SERVICE/NAME", help="For example aws/access_key.")],
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    before: Before = None,
    csv: Csv = False,
) -> None:
    """Say who opened a secret, when, and for which deployment, newest first."""
    from db.repositories import AuditLogRepository
    from db.services import secrets

    secrets.split(name)
    asked = {"secret": name, "since": moment(since, "--since"), "until": moment(until, "--until")}
    with acting.session(write=False) as (session, _):
        found = AuditLogRepository(session)
        if csv:
            _export(found, asked, limit, before)
            return
        page = found.search(limit=limit, before=before, **asked)
        about = found.deployments([(entry.details or {}).get("deployment_id") for entry in page.items])
        owners = found.owners([entry.resource_id for entry in page.items])
    items = [
        {
            "id": entry.id, "at": entry.at, "actor": entry.actor, "client": entry.client, "task_id": entry.task_id,
            "owner": owners.get(entry.resource_id),
            "deployment_id": (number := (entry.details or {}).get("deployment_id")), "deployment": about.get(number),
        }
        for entry in page.items
    ]  # fmt: skip
    out.page(
        "openings",
        ("at", "actor", "client", "owner", "deployment id", "deployment"),
        items,
        str(page.next) if page.next else None,
    )


def view(entry: AuditLog) -> dict[str, Any]:
    """An entry as it is shown."""
    return {
        "id": entry.id, "at": entry.at, "action": entry.action,
        "resource": f"{entry.resource_type}:{entry.resource_id}" if entry.resource_id else entry.resource_type,
        "actor": entry.actor, "actor_type": entry.actor_type, "client": entry.client, "db_user": entry.db_user,
        "ip_address": entry.ip_address, "user_agent": entry.user_agent, "request_id": entry.request_id,
        "task_id": entry.task_id, "changes": entry.changes, "details": entry.details,
    }  # fmt: skip


def say(item: dict[str, Any]) -> str:
    """Changes and details on one line."""
    parts = [f"{field}: {show(old)} -> {show(new)}" for field, (old, new) in sorted((item["changes"] or {}).items())]
    parts += [f"{name}={show(value)}" for name, value in sorted((item["details"] or {}).items())]
    text = ", ".join(parts)
    return text if len(text) <= 300 else text[:297] + "..."


def _values(text: str | None) -> tuple[Any, ...] | None:
    """What a word on the command line may stand for in JSON: itself, and the number or constant that it spells."""
    if text is None:
        return None
    try:
        read = json.loads(text)
    except ValueError:
        return (text,)
    return (text,) if isinstance(read, str) else (text, read)


def _export(found: AuditLogRepository, asked: dict[str, Any], limit: int, before: int | None) -> None:
    """Entries as comma-separated values, page by page."""
    from db.errors import InvalidInput
    from db.repositories.base import MAX_LIMIT

    if out.json:
        raise InvalidInput("--csv and --json exclude each other")

    def rows() -> Iterator[list[Any]]:
        left, after = max(1, limit), before
        while left > 0:
            page = found.search(limit=min(left, MAX_LIMIT), before=after, **asked)
            yield from ([getattr(entry, column) for column in COLUMNS] for entry in page.items)
            left, after = left - len(page.items), page.next
            found.session.expunge_all()
            if after is None:
                return
        out.note(f"more: --before {after}")

    out.csv(COLUMNS, rows())
