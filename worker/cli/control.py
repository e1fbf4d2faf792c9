"""The platform as a whole: `ops status up down demo env relay show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.output import out


def register(root: typer.Typer) -> None:
    """Add these commands to the tree."""
    for command in (status, up, down, demo, env, relay, show):
        root.command()(command)


def status() -> None:
    """Say what runs, what waits and what fails. Example: ops status"""
    from worker.cli import status as page

    raise typer.Exit(page.show())


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background; `ops down` stops it.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Flower's port (5555, or the next free one).")
    ] = None,
    view: Annotated[bool, typer.Option(hidden=True)] = True,
) -> None:
    """Run the whole platform here: servers, workers, beats, Flower. Ctrl-C stops it. Example: ops up --detach"""
    from worker.cli import platform

    raise typer.Exit(platform.up(detach=detach, port=port, view=view))


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
    """Write .env with fresh secrets; overwrites nothing. Example: ops env"""
    from worker.cli import envfile

    path = envfile.write(Path.cwd())
    out.result({"path": str(path)}, f"written: {path}", "next: fill in DATABASE_URL and OPS_BROKER_URL")


def relay() -> None:
    """Ring, rescue and expire until stopped, without a worker. Example: ops relay"""
    from worker.cli import platform

    platform.relay()


def show(
    id: Annotated[str, typer.Argument(help="A deployment's number, a job's id, or TYPE:ID of anything audited.")],
) -> None:
    """Tell the whole story of anything, in order, and why it waits. Example: ops show 42"""
    from worker.cli import story

    story.tell(id)
