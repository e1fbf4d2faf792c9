"""`ops schedule`: what happens by itself, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import out, when

if TYPE_CHECKING:
    from datetime import datetime

    from db.models import Schedule, ScheduleRun

app = typer.Typer(help="Schedules: what happens by itself, and when.")

Name = Annotated[str, typer.Argument(help="The schedule's name.")]
Cron = Annotated[str | None, typer.Option(help="Minute hour day month weekday, such as '30 2 * * 1-5'.")]
Every = Annotated[str | None, typer.Option(help="How often: 90s, 15m, 1h30m, 2d.")]
At = Annotated[str | None, typer.Option("--once", help="One time: 2026-12-01T03:00, or with an offset.")]
Zone = Annotated[str | None, typer.Option("--timezone", help="Of --cron and --once: Europe/Berlin; UTC by default.")]
App = Annotated[str | None, typer.Option("--deploy", metavar="APP", help="Deploy this application...")]
To = Annotated[str | None, typer.Option("--to", metavar="INFRA", help="...to this infrastructure...")]
Version = Annotated[str | None, typer.Option("--version", help="...in this version.")]
Task = Annotated[str | None, typer.Option(help="Or enqueue this durable task, of any Celery app...")]
Queue = Annotated[str | None, typer.Option(help="...on this queue...")]
Args = Annotated[str | None, typer.Option(help="...with these arguments: a JSON array...")]
Kwargs = Annotated[str | None, typer.Option(help="...and these keyword arguments: a JSON object.")]
Idempotent = Annotated[bool | None, typer.Option(help="The task may be repeated after a loss or a failure.")]
Timeout = Annotated[int | None, typer.Option(help="Seconds after which the task is stopped.")]
Priority = Annotated[int | None, typer.Option(min=0, max=9, help="0 goes first, 9 last.")]
Overlap = Annotated[str | None, typer.Option(help="While its run before is not over: skip (default) or queue.")]
CatchUp = Annotated[str | None, typer.Option(help="Times that passed while nothing ran: none (default) or one.")]
Failures = Annotated[int | None, typer.Option("--pause-on-failure", help="Pause after so many in a row; 0: never.")]
Count = Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="How many times.")]


@app.command(
    epilog="Example: ops schedule add nightly --cron '30 2 * * *' --timezone Europe/Berlin "
    "--deploy web --to production --version v1.2.3"
)
def add(
    name: Name, cron: Cron = None, every: Every = None, once: At = None, timezone: Zone = None, deploy: App = None,
    to: To = None, version: Version = None, task: Task = None, queue: Queue = None, args: Args = None,
    kwargs: Kwargs = None, idempotent: Idempotent = None, timeout: Timeout = None, priority: Priority = None,
    overlap: Overlap = None, catch_up: CatchUp = None, pause_on_failure: Failures = None,
) -> None:  # fmt: skip
    """Let something happen by itself; it acts with your rights, which are checked each time."""
    from db.services import schedules

    values = _fields(
        cron=cron, every=every, once=once, timezone=timezone, overlap=overlap, catch_up=catch_up,
        pause_on_failure=pause_on_failure,
    )  # fmt: skip
    values |= _work(
        {}, deploy=deploy, to=to, version=version, task=task, queue=queue, args=args, kwargs=kwargs,
        idempotent=idempotent, timeout=timeout, priority=priority,
    )  # fmt: skip
    with acting.session(action="ops schedule add") as (session, user):
        made = schedules.register(session, user_id=user.id, actor=user, name=name, **values)
        shown = view(made)
    line = f"schedule {shown['name']} fires {_moment(shown['next_run_at'])} for the first time"
    out.result(shown, line, f"next: ops schedule next {shown['name']}")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List schedules, newest first. Example: ops schedule list"""
    from db.repositories import ScheduleRepository

    with acting.session(write=False) as (session, _):
        page = ScheduleRepository(session).list_(limit=limit, before=before)
        items = [view(each) for each in page.items]
    columns = ("name", "when", "what", "state", "next run at", "last fired at", "user")
    out.page("schedules", columns, items, str(page.next) if page.next else None)


@app.command()
def show(name: Name, runs: Annotated[int, typer.Option(min=0, max=500, help="Runs to show.")] = 10) -> None:
    """Show one schedule and what became of its last times. Example: ops schedule show nightly"""
    from db.repositories import ScheduleRepository, ScheduleRunRepository

    with acting.session(write=False) as (session, _):
        found = ScheduleRepository(session).require_by_name(name)
        shown = view(found)
        latest = [run_view(run) for run in ScheduleRunRepository(session).latest(found.id, runs)] if runs else []
    if out.json:
        out.record(shown | {"runs": latest})
        return
    out.table(None, ("field", "value"), shown.items())
    columns = ("fire at", "outcome", "by hand", "reason", "deployment id", "job id")
    out.page("runs yet", columns, latest, None)


@app.command(epilog="Example: ops schedule edit nightly --version v1.2.4 --overlap queue")
def edit(
    name: Name, cron: Cron = None, every: Every = None, once: At = None, timezone: Zone = None, deploy: App = None,
    to: To = None, version: Version = None, task: Task = None, queue: Queue = None, args: Args = None,
    kwargs: Kwargs = None, idempotent: Idempotent = None, timeout: Timeout = None, priority: Priority = None,
    overlap: Overlap = None, catch_up: CatchUp = None, pause_on_failure: Failures = None,
) -> None:  # fmt: skip
    """Change what is named. Another timing counts from now; one that is paused stays paused."""
    from db.errors import InvalidInput
    from db.repositories import ScheduleRepository
    from db.services import schedules

    with acting.session(action="ops schedule edit") as (session, user):
        found = ScheduleRepository(session).require_by_name(name)
        current = schedules.values_of(found)
        values = _fields(
        cron=cron, every=every, once=once, timezone=timezone, overlap=overlap, catch_up=catch_up,
            pause_on_failure=pause_on_failure,
        )  # fmt: skip
        values |= _work(
            current, deploy=deploy, to=to, version=version, task=task, queue=queue, args=args, kwargs=kwargs,
            idempotent=idempotent, timeout=timeout, priority=priority,
        )  # fmt: skip
        if not values:
            raise InvalidInput("nothing to change is named", hint="ops schedule edit --help")
        shown = view(schedules.edit(session, schedule=found, actor=user, **values))
    out.result(shown, f"schedule {name} is changed; it fires {_moment(shown['next_run_at'])}")


@app.command()
def pause(
    name: Name, reason: Annotated[str | None, typer.Option(help="Why; it is shown and recorded.")] = None
) -> None:
    """Fire it no more until it is resumed. Example: ops schedule pause nightly --reason 'freeze until Monday'"""
    from db.repositories import ScheduleRepository
    from db.services import schedules

    with acting.session(action="ops schedule pause") as (session, user):
        found = ScheduleRepository(session).require_by_name(name)
        schedules.pause(session, schedule=found, reason=reason, actor=user)
        shown = {"name": found.name, "paused_at": found.paused_at, "paused_because": found.paused_because}
    out.result(shown, f"schedule {name} is paused; next: ops schedule resume {name}")


@app.command()
def resume(name: Name) -> None:
    """Fire it again, from its next time on. Example: ops schedule resume nightly"""
    from db.repositories import ScheduleRepository
    from db.services import schedules

    with acting.session(action="ops schedule resume") as (session, user):
        found = ScheduleRepository(session).require_by_name(name)
        shown = view(schedules.resume(session, schedule=found, actor=user))
    out.result(shown, f"schedule {name} fires again {_moment(shown['next_run_at'])}")


@app.command("run-now")
def run_now(name: Name) -> None:
    """Do once what it does, now; its own times stay as they are. Example: ops schedule run-now nightly"""
    from db.repositories import ScheduleRepository
    from db.services import schedules
    from worker.cli.deployment import ready_to_ring

    ready_to_ring()
    with acting.session(action="ops schedule run-now") as (session, user):
        found = ScheduleRepository(session).require_by_name(name)
        shown = run_view(schedules.run_now(session, schedule=found, actor=user))
    number = shown["deployment_id"]
    following = f"ops deployment logs -f {number}" if number else f"ops job show {shown['job_id']}"
    out.result({"name": name} | shown, f"schedule {name} is run now", f"next: {following}")


@app.command("next")
def next_(name: Annotated[str | None, typer.Argument(help="Only this schedule's.")] = None, count: Count = 5) -> None:
    """Show the next times, of one schedule or of all together. Example: ops schedule next nightly -n 10"""
    from db.repositories import ScheduleRepository
    from db.services import schedules

    with acting.session(write=False) as (session, _):
        rows = ScheduleRepository(session)
        wanted = rows.all_with_names() if name is None else [rows.require_by_name(name)]
        times = [
            {"at": at, "name": each.name, "local": _local(each, at)}
            for each in wanted
            for at in schedules.upcoming(session, schedule=each, count=count)
        ]
    times = sorted(times, key=lambda each: (each["at"], each["name"]))[:count]
    if out.json:
        out.record({"items": times})
    elif not times:
        out.line("nothing is due by itself" if name is None else f"schedule {name} has no next time")
    else:
        out.table(None, ("at", "name", "in its time zone"), (tuple(each.values()) for each in times))


@app.command()
def rm(name: Name) -> None:
    """Remove a schedule with its history; what it has enqueued goes on. Example: ops schedule rm nightly"""
    from db.repositories import ScheduleRepository
    from db.services import schedules

    with acting.session(action="ops schedule rm") as (session, user):
        schedules.remove(session, schedule=ScheduleRepository(session).require_by_name(name), actor=user)
    out.result({"removed": name}, f"schedule {name} is removed")


def view(schedule: Schedule) -> dict[str, Any]:
    """A schedule as it is shown; its names are loaded."""
    from db.recurrence import duration

    timing = schedule.cron and f"{schedule.cron} ({schedule.timezone})"
    if schedule.every_seconds:
        timing = f"every {duration(schedule.every_seconds)}"
    work = f"task {schedule.task} on {schedule.queue}"
    if schedule.application is not None and schedule.infrastructure is not None:
        work = f"deploy {schedule.application.name} {schedule.version} to {schedule.infrastructure.name}"
    state = "paused" if schedule.paused_at else "active" if schedule.next_run_at else "over"
    return {
        "id": schedule.id,
        "name": schedule.name,
        "when": timing or "once",
        "what": work,
        "args": schedule.args,
        "kwargs": schedule.kwargs,
        "overlap": schedule.overlap,
        "catch_up": schedule.catch_up,
        "pause_on_failure": schedule.pause_on_failure,
        "user": schedule.user.username,
        "state": state,
        "paused_at": schedule.paused_at,
        "paused_because": schedule.paused_because,
        "next_run_at": schedule.next_run_at,
        "last_fired_at": schedule.last_fired_at,
        "updated_at": schedule.updated_at,
    }


def run_view(run: ScheduleRun) -> dict[str, Any]:
    """What became of one time, as it is shown."""
    fields = ("fire_at", "fired_at", "by_hand", "outcome", "reason", "deployment_id", "job_id")
    return {field: getattr(run, field) for field in fields}


def _fields(**given: Any) -> dict[str, Any]:
    """When and how, where it was said."""
    values = {name: value for name, value in given.items() if value is not None}
    if values.get("pause_on_failure") == 0:
        values["pause_on_failure"] = None
    return values


def _work(current: dict[str, Any], *, to: str | None, version: str | None, timeout: int | None, **given: Any) -> Any:
    """What, where it was said: of one kind, with the rest as it is."""
    from db.errors import InvalidInput

    deploy = {"application": given["deploy"], "infrastructure": to, "version": version}
    task = {name: given[name] for name in ("queue", "idempotent")} | {"name": given["task"], "timeout_seconds": timeout}
    task |= {name: _json(given[name], f"--{name}") for name in ("args", "kwargs")}
    deploy, task = ({name: value for name, value in each.items() if value is not None} for each in (deploy, task))
    if deploy and task:
        raise InvalidInput(
            "a schedule deploys (--deploy APP --to INFRA --version V) or enqueues a task (--task --queue)"
        )
    kind = (
        "deploy" if deploy else "task" if task else next((each for each in ("deploy", "task") if each in current), "")
    )
    said = (deploy or task) | ({} if given["priority"] is None else {"priority": given["priority"]})
    return {kind: current.get(kind, {}) | said} if said and kind else {}


def _json(text: str | None, option: str) -> Any:
    import json

    from db.errors import InvalidInput

    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{option} is no JSON") from None


def _local(schedule: Schedule, moment: datetime) -> str:
    from db.recurrence import zone

    return moment.astimezone(zone(schedule.timezone)).strftime("%a %Y-%m-%d %H:%M:%S %Z")


def _moment(moment: datetime | None) -> str:
    return "no more" if moment is None else f"at {when(moment)}"
