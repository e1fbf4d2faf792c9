"""`ops deploy --plan` and `ops rollback`: what would change, and the way back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import out

Priority = Annotated[int, typer.Option(min=0, max=9, help="0 goes first, 9 last.")]


def register(root: typer.Typer) -> None:
    """Add `ops rollback` to the tree."""
    root.command(epilog="Example: ops rollback web --to production")(rollback)


def rollback(
    application: Annotated[str, typer.Argument(metavar="APP", help="The application's name.")],
    to: Annotated[str, typer.Option("--to", metavar="INFRA", help="The infrastructure's name.")],
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="One that has succeeded there; by default the one before.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not watch it.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Seconds to watch at most; then exit code 124.")
    ] = None,
) -> None:
    """Go back to what succeeded there before, with the configuration of then; a deployment of its own."""
    from db.repositories import ApplicationRepository, InfrastructureRepository
    from db.services import rollbacks
    from worker.cli.deployment import ready_to_ring, say_asked
    from worker.cli.watching import watch

    bell = ready_to_ring()
    with acting.session(action="ops rollback") as (session, user):
        made = rollbacks.create(
            session, user_id=user.id, application_id=ApplicationRepository(session).require_by_name(application).id,
            infrastructure_id=InfrastructureRepository(session).require_by_name(to).id, version=version, actor=user,
        )  # fmt: skip
        number = made.id
        asked = {
            "id": number, "job_id": str(made.job_id), "application": application, "version": made.version,
            "infrastructure": to, "replaces": made.rollback_deployment_id,
        }  # fmt: skip
    out.line(f"back to {asked['version']}, in place of deployment {asked['replaces']}")
    say_asked(asked, rung=bool(session.info.get("ops_rung")) if bell else None, detach=detach)
    if not detach:
        raise typer.Exit(watch(number, timeout))


def plan(application: str, version: str, to: str, digest: str | None) -> None:
    """Print what would change; writes nothing. Raises NotFound, InvalidInput."""
    from db.repositories import ApplicationRepository, InfrastructureRepository
    from db.services import comparisons

    with acting.session(write=False) as (session, _):
        found = comparisons.compare(
            session, application=ApplicationRepository(session).require_by_name(application),
            infrastructure=InfrastructureRepository(session).require_by_name(to), version=version, digest=digest,
        )  # fmt: skip
        runs = None if found.runs is None else {"id": found.runs.id, "version": found.runs.version}
        since = None if found.since is None else {"id": found.since.id, "status": found.since.status}
    changes, remark = found.changes, None
    if found.release is not None and digest is None:
        content, remark = look_up(found.release, version, found.what.working_directory)
        changes = comparisons.with_content(changes, content) if content else changes
    shown = [{"field": each.field, "before": each.before, "after": each.after} for each in changes]
    if out.json:
        record: dict[str, Any] = {"runs": runs, "ended_badly_since": since, "compared": found.is_known}
        out.record(record | {"digest": found.digest, "changes": shown, "remark": remark})
        return
    out.line(f"runs there: {runs['version']} (deployment {runs['id']})" if runs else "runs there: nothing yet")
    if since:
        out.line(f"deployment {since['id']} is {since['status']} since: what runs may be a part of it", style="yellow")
    if not found.is_known:
        out.line("what runs there was deployed by an older release; only the version can be compared", style="yellow")
    if remark:
        out.line(f"the content cannot be looked up from here: {remark}", style="yellow")
    if shown:
        out.table(None, ("field", "now", "then"), ((each["field"], each["before"], each["after"]) for each in shown))
    else:
        out.line("nothing would change")
    out.line(f"nothing is written; to do it: ops deploy {application} {version} --to {to}", style="dim")


def commit_now(application: str, version: str) -> str | None:
    """The commit that a tag or branch is at as it is asked for, before anything is written: it may move on. None where
    the content is no commit, or cannot be looked up from here; then the first attempt does."""
    from db.errors import InvalidInput
    from db.releases import Kind, kind_of, reference
    from db.repositories import ApplicationRepository

    with acting.session(write=False) as (session, _):
        artifact = ApplicationRepository(session).require_by_name(application).configuration.get("artifact")
    if not artifact or kind_of(artifact) is not Kind.GIT:
        return None
    try:
        return look_up(reference(artifact, version), version, None)[0]
    except InvalidInput:
        return None  # is said where it is asked for


def look_up(release: Any, version: str, folder: str | None) -> tuple[str | None, str | None]:
    """The content's digest as it is seen from here, or why there is none."""
    from tasks import contents, releases

    try:
        return releases.resolve(release, version, folder), None
    except contents.ReleaseError as error:
        return None, str(error)
