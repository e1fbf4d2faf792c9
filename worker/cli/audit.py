"""`ops audit`: what happened, who did it, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting, seals
from worker.cli.moments import moment
from worker.cli.output import out, show

if TYPE_CHECKING:
    from db.models import AuditLog

app = typer.Typer(help="The audit trail.")


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
    to: Annotated[str | None, typer.Option(help="To which value.")] = None,
    since: Annotated[str | None, typer.Option(help="30m, 12h, 7d, or a time.")] = None,
    until: Annotated[str | None, typer.Option(help="As --since.")] = None,
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(help="Where the page before ended.")] = None,
) -> None:
    """Search the trail, newest first."""
    from db.repositories import AuditLogRepository
    from worker.cli.ids import job_id

    job = None if task is None else job_id(task)
    with acting.session(write=False) as (session, _):
        page = AuditLogRepository(session).search(
            resource=resource, actor=actor, action=action, task_id=job, changed=changed, to=to,
            since=moment(since, "--since"), until=moment(until, "--until"), limit=limit, before=before,
        )  # fmt: skip
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
