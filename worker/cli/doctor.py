"""`ops doctor`: looks at what a security review would ask for, and says what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.output import out

#: By the worst finding.
EXIT_CODES = (0, 0, 1, 3)
MARKS = ("ok", "-", "warning", "CRITICAL")
STYLES = ("green", "dim", "yellow", "bold red")


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Leave out what asks the internet.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is not in order.")] = False,
) -> None:
    """Look at keys, TLS, rights, bounds, clocks, accounts and backups; each finding says what to do.

    Exit code: 0 in order, 1 a warning, 3 something critical. Example: ops doctor --quiet
    """
    from worker.doctor import Severity, examine

    worst = Severity.OK
    for finding in examine(offline=offline):
        worst = max(worst, finding.severity)
        if quiet and finding.severity <= Severity.NOTE:
            continue
        if out.json:
            out.record(
                {
                    "check": finding.check,
                    "severity": finding.severity.name.lower(),
                    "says": finding.says,
                    "do": finding.do,
                }
            )
            continue
        out.line(f"{MARKS[finding.severity]:8} {finding.check}: {finding.says}", style=STYLES[finding.severity])
        if finding.do:
            out.line(f"{'':8} do: {finding.do}")
    raise typer.Exit(EXIT_CODES[worst])
