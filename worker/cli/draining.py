"""`ops drain`, `ops undrain`: let workers finish what they run and take nothing new."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from worker.cli.output import out

LOOK_EVERY_SECONDS = 0.5

Named = Annotated[str | None, typer.Argument(help="A worker's name, or either half of it, as `ops status` shows it.")]
All = Annotated[bool, typer.Option("--all", help="All workers that live now.")]


def register(app: typer.Typer) -> None:
    app.command()(drain)
    app.command()(undrain)


def drain(
    worker: Named = None,
    every: All = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing runs there any more.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="With --wait: the most seconds; then exit code 124.")] = 3600,
) -> None:
    """Let a worker finish what it runs and take nothing new; one that starts later works.

    What waits goes to other workers, or stays queued. Use it before you replace a worker, then stop it. Example:
    ops drain --all --wait
    """
    from db.services import draining

    with _acting(worker, every, "drain") as (session, user):
        found = [(each.id, each.name) for each in draining.drain(session, worker, actor=user)]
    ids, names = [id for id, _ in found], [name for _, name in found]
    left = _wait(ids, timeout) if wait else _look(ids)
    out.result(
        {"draining": names, "running": sum(each.running for each in left), "drained": not left},
        *(f"{name} takes nothing new" for name in names),
        *(f"{each.name}: {_says(each)}" for each in left),
        f"next: ops status, or ops undrain {worker or '--all'}" if left else "nothing runs there: stop it",
    )
    if wait and left:
        raise typer.Exit(124)


def undrain(worker: Named = None, every: All = False) -> None:
    """Let a worker that drains take work again. Example: ops undrain --all"""
    from db.services import draining

    with _acting(worker, every, "undrain") as (session, user):
        names = [each.name for each in draining.undrain(session, worker, actor=user)]
    out.result({"working": names}, *(f"{name} takes work" for name in names))


def _acting(worker: str | None, every: bool, action: str) -> Any:
    from db.errors import InvalidInput
    from worker.cli import acting

    if (worker is None) == (not every):
        raise InvalidInput("name one worker, or say --all")
    return acting.session(action=action)


def _look(ids: Sequence[str]) -> list[Any]:
    """Those that have not drained yet. A process that ended runs nothing; what it left behind is the rescue's."""
    from db.connection import get_db_session
    from db.repositories import ProcessRepository

    with get_db_session(read_only=True) as session:
        return [each for each in ProcessRepository(session).list_draining(ids) if not each.heard or each.running]


def _wait(ids: Sequence[str], seconds: float) -> list[Any]:
    end = time.monotonic() + seconds
    while (left := _look(ids)) and time.monotonic() < end:
        time.sleep(LOOK_EVERY_SECONDS)
    return left


def _says(row: Any) -> str:
    jobs = f"{row.running} job{'' if row.running == 1 else 's'} still run{'s' if row.running == 1 else ''}"
    return jobs if row.heard else "it has not heard yet"
