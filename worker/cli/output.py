"""What commands print: tables and lines for people, one JSON object (or one a line) for programs.

Nothing that a person did not write here is ever read as markup, and no control sequence of a stranger's output
reaches a terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLAIN = "\x1b[0m"
#: What no JSON escape hides from a terminal: C1 controls, and marks that turn around what is read after them.
_UNSEEN = "\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(rf"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|.)?|[\x00-\x08\x0b-\x1f{_UNSEEN}]")

STYLES = {
    "success": "green", "succeeded": "green", "running": "cyan", "started": "cyan", "pending": "yellow",
    "queued": "yellow", "failed": "red", "error": "bold red", "cancelled": "magenta", "firing": "bold red",
    "resolved": "green", "up": "green", "down": "bold red", "degraded": "yellow", "paused": "magenta",
}  # fmt: skip


class Output:
    """One per process; ``json`` is set by `--json`."""

    def __init__(self) -> None:
        self.json = False
        self._consoles: dict[str, Console] = {}

    @property
    def is_terminal(self) -> bool:
        return sys.stdout.isatty() and not self.json

    @property
    def console(self) -> Console:
        return self._console("stdout")

    def _console(self, stream: str) -> Console:
        if stream not in self._consoles:
            from rich.console import Console

            file = sys.stdout if stream == "stdout" else sys.stderr
            # Into a pipe or a file a table is as wide as it needs to be.
            width = None if file.isatty() else 200
            self._consoles[stream] = Console(
                file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not file.isatty()
            )
        return self._consoles[stream]

    def result(self, value: Mapping[str, Any], *lines: str) -> None:
        """The one object of a command; people get the lines instead."""
        if self.json:
            self.record(value)
            return
        for line in lines:
            self.line(line)

    def record(self, value: Any) -> None:
        """One JSON document on one line."""
        text = json.dumps(plain(value), ensure_ascii=False)
        # Its strings say the same to a program, and nothing to a terminal.
        text = re.sub(f"[{_UNSEEN}]", lambda found: f"\\u{ord(found[0]):04x}", text)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line for people; not printed with `--json`."""
        if not self.json:
            self.console.print(safe(text), style=style, soft_wrap=True)

    def note(self, text: str) -> None:
        """A remark beside the output, on stderr."""
        self._console("stderr").print(safe(text), style="dim", soft_wrap=True)

    def error(self, text: str, hint: str | None, code: int) -> None:
        """The end of a command that failed: one line, and one that says what to do."""
        text = _bounded(safe(text).replace("\n", " "))
        if self.json:
            sys.stderr.write(json.dumps({"error": text, "hint": hint, "exit_code": code}) + "\n")
            return
        console = self._console("stderr")
        console.print(f"error: {text}", style="red", soft_wrap=True)
        if hint:
            console.print(f"  try: {safe(hint)}", soft_wrap=True)

    def raw(self, text: str) -> None:
        """Output of others, as it was printed, but for what could harm a terminal."""
        sys.stdout.write(safe(text, colours=self.is_terminal))
        sys.stdout.flush()

    def table(self, title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table for people."""
        if not self.json:
            self.console.print(make_table(title, columns, rows))

    def csv(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Comma-separated values. No cell is a formula to a spreadsheet, whatever a stranger has put into it."""
        import csv

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(value) for value in row])
        sys.stdout.flush()

    def page(self, noun: str, columns: Sequence[str], items: Sequence[Mapping[str, Any]], more: str | None) -> None:
        """A list: with `--json` an object with ``items`` and ``next``; for people a table of the columns."""
        if self.json:
            self.record({"items": items, "next": more})
            return
        if not items:
            self.line(f"no {noun}")
            return
        self.table(None, columns, ([item.get(column.replace(" ", "_")) for column in columns] for item in items))
        if more is not None:
            self.line(f"more: --before {more}", style="dim")


def make_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A rich table whose cells are text, never markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(text := show(cell), style=STYLES.get(text, "")) for cell in row))
    return table


def safe(text: str, *, colours: bool = False) -> str:
    """Text without control characters, but for line ends and tabs (and colours, where they are wanted)."""
    if not colours:
        return _CONTROL.sub("", text)
    kept = _CONTROL.sub(lambda found: found.group() if _COLOUR.fullmatch(found.group()) else "", text)
    return kept + _PLAIN if "\x1b" in kept else kept  # what comes next is not the stranger's to paint, or to hide


def _bounded(text: str) -> str:
    """A value of ten thousand characters that was given must not bury what is said about it."""
    return text if len(text) <= 800 else f"{text[:200]} ... {text[-400:]}"


def show(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return when(value)
    if isinstance(value, timedelta):
        return duration(value.total_seconds())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    if isinstance(value, dict):
        return json.dumps(plain(value), ensure_ascii=False)
    return safe(str(value)).replace("\n", " ")


def _cell(value: Any) -> Any:
    """A value of a CSV file: numbers as they are, everything else as text that begins no formula."""
    if value is None or isinstance(value, int | float):
        return value
    value = plain(value)
    text = safe(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).replace("\n", " ")
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) or text.startswith("\t") else text


def plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601, durations in seconds, everything else as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def when(moment: datetime) -> str:
    """A time in the reader's own zone, without the day when it is today's."""
    local = moment.astimezone()
    today = local.date() == datetime.now(UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A duration in its two largest units: ``2 m 10 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    parts = ((seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s"))
    shown = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(shown[:2])


def ago(moment: datetime | None) -> str:
    """How long ago something was."""
    if moment is None:
        return "never"
    return f"{duration(max(0.0, (datetime.now(UTC) - moment).total_seconds()))} ago"


out = Output()
