"""`ops audit verify`, `seal` and `new-key`: that nobody has changed the trail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.moments import moment
from worker.cli.output import ago, out

if TYPE_CHECKING:
    from db.services.verification import Report

#: Findings that people are shown; `--json` gives all.
SHOWN = 100


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: ops audit verify --seals /mnt/worm/seals.jsonl")(verify)
    app.command()(seal)
    app.command("new-key")(new_key)


def verify(
    since: Annotated[str | None, typer.Option(help="Only what was sealed since: 30m, 12h, 7d, or a time.")] = None,
    seals: Annotated[
        list[Path] | None, typer.Option(help="A file of seals kept outside; OPS_AUDIT_SEAL_FILE by default.")
    ] = None,
) -> None:
    """Verify every entry of the trail against its seal. Exit code 0: whole, 1: not, 3: cannot be told."""
    from db.connection import get_db_session
    from db.seals import seal_keys
    from db.services import verification
    from db.services.outside import OutsideSeals
    from db.settings import get_settings

    keys = seal_keys()
    default = get_settings().audit_seal_file
    paths = seals or ([default] if default is not None and default.is_file() else [])
    outside = OutsideSeals(paths, keys) if paths else None
    with _bar() as (begun, progress), get_db_session() as session:
        report = verification.verify(
            session, keys, outside=outside, since=moment(since, "--since"), begun=begun, progress=progress
        )
    if outside is None:
        report.notes.append("no seals were kept outside (OPS_AUDIT_SEAL_FILE), so a cut-off end would not be seen")
    _print(report)
    raise typer.Exit(0 if report.is_whole else 1)


def seal() -> None:
    """Seal now what waits for the next tick. Example: ops audit seal"""
    from tasks.audit import seal_all

    made = seal_all()
    entries = sum(each.count for each in made)
    numbers = [each.number for each in made]
    said = f"sealed {entries} entries in {len(made)} seals" if made else "nothing to seal, or somebody else is sealing"
    out.result({"seals": numbers, "entries": entries}, said)


def new_key() -> None:
    """Print a fresh pair of keys; it is stored nowhere. Example: ops audit new-key"""
    from db.seals import new_pair

    private, public = new_pair()
    out.result(
        {"seal_key": private, "verify_key": public},
        f"OPS_AUDIT_SEAL_KEY={private}",
        f"OPS_AUDIT_VERIFY_KEY={public}",
    )
    if not out.json:
        out.note("the first seals and belongs to workers only; the second verifies: keep it where the database is not")


@contextlib.contextmanager
def _bar() -> Iterator[tuple[Callable[[int], None] | None, Callable[[int], None] | None]]:
    """A progress bar on a terminal; elsewhere nothing."""
    if not out.is_terminal:
        yield None, None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out.console, transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield (lambda total: bar.update(task, total=total)), (lambda count: bar.advance(task, count))


def _print(report: Report) -> None:
    if out.json:
        out.record(_plain(report))
        return
    for finding in report.findings[:SHOWN]:
        out.line(finding.what, style="red")
    hidden = len(report.findings) + report.more_findings - SHOWN
    if hidden > 0:
        out.line(f"and {hidden} more; --json names {'them' if not report.more_findings else 'the first 10,000'}")
    if report.unverifiable:
        out.line(f"{report.unverifiable} entries cannot be verified: their seals are missing", style="red")
    out.line(f"verified: {report.entries} entries under {report.seals} seals")
    if report.dropped:
        out.line(f"dropped when they were due: {report.dropped} entries")
    waiting = f", the oldest {ago(report.oldest_unsealed_at)}" if report.unsealed else ""
    out.line(f"not sealed yet: {report.unsealed} entries{waiting}", style="yellow" if report.unsealed else None)
    for note in report.notes:
        out.line(f"note: {note}", style="dim")
    if report.is_whole:
        out.line("the trail is whole", style="green")
    else:
        out.line("the trail is NOT whole", style="bold red")


def _plain(report: Report) -> dict[str, Any]:
    return {
        "whole": report.is_whole, "entries": report.entries, "seals": report.seals, "newest_seal": report.newest_seal,
        "unsealed": report.unsealed, "oldest_unsealed_at": report.oldest_unsealed_at, "dropped": report.dropped,
        "unverifiable": report.unverifiable, "notes": report.notes, "more_findings": report.more_findings,
        "findings": [finding._asdict() for finding in report.findings],
    }  # fmt: skip
