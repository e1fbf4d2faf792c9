"""`ops job`: the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import out

if TYPE_CHECKING:
    from db.models import Job

app = typer.Typer(help="Jobs: every task that cannot be lost.")


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    task: Annotated[str | None, typer.Option(help="Only jobs of this task.")] = None,
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List jobs, newest first. Example: ops job list --state queued"""
    from db.repositories import JobRepository

    with acting.session(write=False) as (session, _):
        page = JobRepository(session).list_(state=state, task=task, limit=limit, before=before)
    columns = ("id", "task", "state", "outcome", "attempt", "queue", "worker", "created at", "finished at")
    out.page("jobs", columns, [view(each) for each in page.items], str(page.next) if page.next else None)


@app.command()
def show(id: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """Show one job. Example: ops job show 2c497f7c-7696-452b-a576-823b5555b851"""
    from db.repositories import JobRepository
    from db.services import waiting
    from worker.cli.ids import job_id

    with acting.session(write=False) as (session, _):
        job = JobRepository(session).require(job_id(id))
        shown = view(job) | {"args": job.args, "kwargs": job.kwargs, "result": job.result}
        shown["waits"] = waiting.why(session, job)
    if out.json:
        out.record(shown)
    else:
        out.table(None, ("field", "value"), shown.items())


def view(job: Job) -> dict[str, Any]:
    """A job as it is shown."""
    fields = (
        "id", "task", "state", "outcome", "error", "attempt", "failures", "rescues", "queue", "priority", "lock_key",
        "unique_key", "idempotent", "worker", "fence", "created_at", "run_at", "started_at", "began_at", "finished_at",
    )  # fmt: skip
    return {field: getattr(job, field) for field in fields}
