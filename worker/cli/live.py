"""`ops status --watch`: the same page again and again, on a screen of its own, until Ctrl-C."""

from __future__ import annotations

import time

from worker.cli import status
from worker.cli.output import out


def watch(interval: float) -> int:
    """On a terminal a screen that stays in its place; into a pipe, or with `--json`, one page after the other. The
    exit code is that of the last look."""
    code = 0
    try:
        if not out.is_terminal:
            while True:
                code = status.show()
                time.sleep(interval)
        from rich.live import Live
        from rich.text import Text

        # The terminal's own screen comes back at the end, whatever was on it.
        with Live(console=out.console, screen=True, auto_refresh=False) as screen:
            while True:
                with out.console.capture() as page:
                    code = status.show()
                    out.line(f"every {interval:g} s; Ctrl-C ends it", style="dim")
                screen.update(Text.from_ansi(page.get()), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return code
