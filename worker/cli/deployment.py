"""`ops deploy` and `ops deployment`: ask for it, watch it, end it, try it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import duration, out

if TYPE_CHECKING:
    from db.models import Deployment, DeploymentHost

app = typer.Typer(help="Deployments: what was put where, and what became of it.")

Number = Annotated[str, typer.Argument(metavar="ID", help="The deployment's number.")]
Wait = Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to watch at most; then exit code 124.")]


def register(root: typer.Typer) -> None:
    """Add `ops deploy` to the tree."""
    from worker.cli import release

    root.command(epilog="Example: ops deploy web v1.2.3 --to production")(deploy)
    release.register(root)


def deploy(
    application: Annotated[str, typer.Argument(metavar="APP", help="The application's name.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Reaches the command as OPS_VERSION.")],
    to: Annotated[str, typer.Option("--to", metavar="INFRA", help="The infrastructure's name.")],
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not watch it.")] = False,
    priority: Annotated[int, typer.Option(min=0, max=9, help="0 goes first, 9 last.")] = 5,
    digest: Annotated[
        str | None, typer.Option(help="What the version's content must be: sha256:..., or git: and a commit.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print what would change; writes nothing.")] = False,
    timeout: Wait = None,
) -> None:
    """Deploy a version of an application, and watch it."""
    from db.repositories import ApplicationRepository, InfrastructureRepository
    from db.services import deployments

    if plan:
        from worker.cli import release

        release.plan(application, version, to, digest)
        return
    from worker.cli.release import commit_now

    digest = digest or commit_now(application, version)
    bell = ready_to_ring()
    with acting.session(action="ops deploy") as (session, user):
        app_found = ApplicationRepository(session).require_by_name(application)
        place = InfrastructureRepository(session).require_by_name(to)
        made = deployments.create(
            session, user_id=user.id, application_id=app_found.id, infrastructure_id=place.id, version=version,
            priority=priority, digest=digest, actor=user,
        )  # fmt: skip
        number, job = made.id, str(made.job_id)
    asked = {"id": number, "job_id": job, "application": application, "version": version, "infrastructure": to}
    say_asked(asked, rung=bool(session.info.get("ops_rung")) if bell else None, detach=detach)
    if not detach:
        raise typer.Exit(_watch(number, timeout))


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option(help="Only deployments with this status.")] = None,
    application: Annotated[str | None, typer.Option("--app", help="Only of this application.")] = None,
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 20,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List deployments, newest first. Example: ops deployment list --status failed"""
    from db.models import Deployment
    from db.repositories import ApplicationRepository, DeploymentRepository

    with acting.session(write=False) as (session, _):
        where = []
        if status is not None:
            where.append(Deployment.status == status)
        if application is not None:
            where.append(Deployment.application_id == ApplicationRepository(session).require_by_name(application).id)
        page = DeploymentRepository(session).list_with_names(*where, limit=limit, before=before)
        items = [view(each) for each in page.items]
    columns = ("id", "application", "version", "infrastructure", "status", "user", "created at", "took")
    out.page("deployments", columns, items, str(page.next) if page.next else None)


@app.command()
def show(number: Number) -> None:
    """Show one deployment. Example: ops deployment show 42"""
    from db.services import rollouts, waiting
    from worker.cli.ids import deployment_id

    with acting.session(write=False) as (session, _):
        found = _require(session, deployment_id(number))
        shown = view(found) | {
            "message": remark(found), "waits": waiting.why(session, found.job) if found.job else None,
            "hosts": [host_view(each) for each in rollouts.list_(session, deployment_id=found.id)],
        }  # fmt: skip
    if out.json:
        out.record(shown)
    else:
        hosts = shown.pop("hosts")
        out.table(None, ("field", "value"), shown.items())
        host_table(hosts)
        out.line(f"the whole story: ops show {found.id}", style="dim")


@app.command()
def logs(
    number: Number,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the deployment has ended.")] = False,
    since_id: Annotated[
        int, typer.Option("--since-id", min=0, max=2**63 - 1, help="After this piece: `cursor` in what --json prints.")
    ] = 0,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Begin each line with its time, in UTC.")] = False,
) -> None:
    """Print what a deployment printed; secrets are masked. Example: ops deployment logs -f 42"""
    from worker.cli.ids import deployment_id
    from worker.cli.watching import print_logs

    print_logs(deployment_id(number), follow=follow, since_id=since_id, timestamps=timestamps)


@app.command()
def cancel(
    number: Number,
    reason: Annotated[str | None, typer.Option(help="Why; it is recorded.")] = None,
) -> None:
    """Cancel a queued deployment at once, or ask a running one to end. Example: ops deployment cancel 42"""
    from db.services import deployments
    from worker.cli.ids import deployment_id

    ready_to_ring()
    key = deployment_id(number)
    with acting.session(action="ops deployment cancel") as (session, user):
        state = deployments.cancel(session, deployment_id=key, reason=reason, actor=user)
    line = f"deployment {key} is cancelled" if state == "cancelled" else f"deployment {key} is asked to end"
    out.result({"id": key, "job_state": state}, line, f"next: ops show {key}")


@app.command()
def retry(
    number: Number,
    failed_hosts: Annotated[
        bool, typer.Option("--failed-hosts", help="Only on those of its hosts that are not healthy.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not watch it.")] = False,
    timeout: Wait = None,
) -> None:
    """Try an ended deployment again, with what it was asked for. Example: ops deployment retry 42"""
    from db.repositories import DeploymentLogRepository
    from db.services import deployments
    from worker.cli.ids import deployment_id

    bell = ready_to_ring()
    key = deployment_id(number)
    with acting.session(action="ops deployment retry") as (session, user):
        shown = DeploymentLogRepository(session).cursor(key)  # the log of the tries before is no news
        again = deployments.retry(session, deployment_id=key, failed_hosts=failed_hosts, actor=user)
        asked = {"id": key, "job_id": str(again.job_id)}
    say_asked(asked, rung=bool(session.info.get("ops_rung")) if bell else None, detach=detach)
    if not detach:
        raise typer.Exit(_watch(key, timeout, shown))


def view(deployment: Deployment) -> dict[str, Any]:
    """A deployment as it is shown; its relations are loaded."""
    took = None
    if deployment.started_at is not None and deployment.finished_at is not None:
        took = duration((deployment.finished_at - deployment.started_at).total_seconds())
    return {
        "id": deployment.id,
        "application": deployment.application.name,
        "version": deployment.version,
        "infrastructure": deployment.infrastructure.name,
        "status": deployment.status,
        "digest": deployment.digest,
        "release_digest": deployment.release_digest,
        "replaces": deployment.rollback_deployment_id,
        "error_message": deployment.error_message,
        "user": deployment.user.username,
        "job_id": deployment.job_id,
        "created_at": deployment.created_at,
        "started_at": deployment.started_at,
        "finished_at": deployment.finished_at,
        "took": took,
    }


def host_table(hosts: list[dict[str, Any]]) -> None:
    """What a deployment did to its hosts, if it has any, a line each."""
    columns = ("host", "batch", "status", "release", "previous release", "message")
    if hosts:
        out.table(None, columns, ([each[name.replace(" ", "_")] for name in columns] for each in hosts))


def host_view(host: DeploymentHost) -> dict[str, Any]:
    """What a deployment did to one host."""
    return {
        "host": host.name, "batch": host.batch, "status": host.status, "release": host.release,
        "previous_release": host.previous_release, "message": host.message, "started_at": host.started_at,
        "finished_at": host.finished_at,
    }  # fmt: skip


def remark(deployment: Deployment) -> str | None:
    """What there is to say of a success, e.g. that a part of its output could not be written; its job is loaded."""
    result = deployment.job.result if deployment.job is not None else None
    return result.get("message") if isinstance(result, dict) else None


def _require(session: Any, key: int) -> Deployment:
    from db.errors import NotFound
    from db.repositories import DeploymentRepository

    found = DeploymentRepository(session).get_with_relations(key)
    if found is None:
        raise NotFound(f"there is no deployment {key}", hint="ops deployment list")
    return found


def ready_to_ring() -> bool:
    """Load what publishes doorbells; False without a broker: then the relay of any worker rings."""
    from db.settings import get_settings

    if get_settings().broker_url is None:
        return False
    from worker.app import app as _celery

    return _celery is not None


def say_asked(asked: dict[str, Any], *, rung: bool | None, detach: bool) -> None:
    if out.json:
        if detach:
            out.record(asked | {"doorbell": rung})
        return
    out.line(f"deployment {asked['id']} is asked for", style="bold")
    if rung is None:
        out.note("no broker is configured here; a worker's relay will start it within seconds")
    elif not rung:
        out.note("the broker is away; the deployment is written down and will start by itself when it is back")
    if detach:
        out.line(f"next: ops deployment logs -f {asked['id']}   ops show {asked['id']}")


def _watch(key: int, timeout: float | None, since_id: int = 0) -> int:
    from worker.cli.watching import watch

    return watch(key, timeout, since_id)
