"""The platform as a whole: `ops status up down demo env relay show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.output import out


def register(root: typer.Typer) -> None:
    """Add these commands to the tree."""
    for command in (status, up, down, demo, env, relay, pause, resume, show):
        root.command()(command)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Say what runs, what waits and what fails. Example: ops status --watch"""
    from worker.cli import status as page

    if watch:
        from worker.cli import live

        raise typer.Exit(live.watch(interval))
    raise typer.Exit(page.show())


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background; `ops down` stops it.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Flower's port (5555, or the next free one).")
    ] = None,
    serve_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port of `ops serve` (8080, or the next free one).")
    ] = None,
    view: Annotated[bool, typer.Option(hidden=True)] = True,
) -> None:
    """Run the whole platform here: servers, workers, beats, Flower, serve. Ctrl-C stops it. Example: ops up --detach"""
    from worker.cli import platform

    raise typer.Exit(platform.up(detach=detach, port=port, serve_port=serve_port, view=view))


def down() -> None:
    """Stop what `ops up --detach` started; data stays. Example: ops down"""
    from worker.cli import platform

    platform.down()


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running to play with.")] = False,
) -> None:
    """Deploy for real, break it, kill a worker, and show that nothing was lost. Example: ops demo"""
    from worker.demo import run

    raise typer.Exit(run(keep=keep))


def env() -> None:
    """Write .env, and secrets/ for docker compose, with fresh secrets; overwrites nothing. Example: ops env"""
    from worker.cli import envfile

    made = envfile.write(Path.cwd())
    folders = sorted({str(path.parent if path.name != ".env" else path) for path in made})
    out.result(
        {"paths": made},
        *(f"written: {path}" for path in folders),
        "next: docker compose up -d; or without containers, fill in DATABASE_URL and OPS_BROKER_URL",
    )


def relay() -> None:
    """Ring, rescue and expire until stopped, without a worker. Example: ops relay"""
    from worker.cli import platform

    platform.relay()


def pause(
    reason: Annotated[str | None, typer.Option(help="Why; shown to whoever waits.")] = None,
) -> None:
    """Start nothing from now on; what runs goes on, what is asked for waits. Example: ops pause --reason moving"""
    from db.services import pausing
    from worker.cli import acting

    with acting.session(action="pause") as (session, user):
        pausing.pause(session, reason=reason, actor=user)
    out.result({"paused": True}, "the ledger is paused: nothing starts", "next: ops resume")


def resume(
    queued: Annotated[
        str | None, typer.Option(help="After a restore: `run` what waits, or `cancel` what is not idempotent.")
    ] = None,
    trust_failover: Annotated[
        bool | None,
        typer.Option(
            "--trust-failover/--no-trust-failover", help="Do not pause when a (synchronous) standby takes over."
        ),
    ] = None,
) -> None:
    """Go on after a pause, or after a restore, which pauses by itself. Example: ops resume"""
    from db.errors import InvalidInput
    from db.services import pausing
    from worker.cli import acting

    if queued not in (None, "run", "cancel"):
        raise InvalidInput("--queued takes run or cancel")
    with acting.session(action="resume") as (session, user):
        pausing.resume(session, queued=queued, trust_failover=trust_failover, actor=user)  # type: ignore[arg-type]
    out.result({"paused": False}, "the ledger goes on")


def show(
    id: Annotated[str, typer.Argument(help="A deployment's number, a job's id, or TYPE:ID of anything audited.")],
) -> None:
    """Tell the whole story of anything, in order, and why it waits. Example: ops show 42"""
    from worker.cli import story

    story.tell(id)
