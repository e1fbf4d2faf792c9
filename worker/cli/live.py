"""`ops status --watch`: the same page again and again, on a screen of its own, until Ctrl-C."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker.cli import status
from worker.cli.output import out

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def watch(interval: float) -> int:
    """On a terminal a screen that stays in its place; into a pipe, or with `--json`, one page after the other. The
    exit code is that of the last look."""
    code = 0
    try:
        if not out.is_terminal:
            while True:
                code = status.show()
                time.sleep(interval)
        from rich.console import Console
        from rich.live import Live

        # On a console of its own: what is printed on a live one, a page that is captured too, has its screen within it.
        # The terminal's own screen comes back at the end, whatever was on it.
        with Live(console=Console(), screen=True, auto_refresh=False) as screen:
            while True:
                with out.console.capture() as page:
                    code = status.show()
                text = fitted(screen.console, page.get(), f"every {interval:g} s; Ctrl-C ends it")
                screen.update(text, refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return code


def fitted(console: Console, page: str, last: str) -> Text:
    """The page as it has room on the console, with a last line of its own; what has none is said to be missing. Empty
    lines go first."""
    from rich.text import Text

    lines, room = list(Text.from_ansi(page.rstrip("\n")).wrap(console, console.width)), console.height - 1
    if len(lines) > room:
        lines = [line for line in lines if line.plain.strip()]
    if (missing := len(lines) - room) > 0:
        lines, last = lines[:room], f"{missing} more lines in a taller window, or by `ops status`; {last}"
    return Text("\n").join([*lines, Text(last, style="dim")])
