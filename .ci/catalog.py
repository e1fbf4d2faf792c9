"""What a schema holds, object by object: to see what a migration has left or forgotten."""

from __future__ import annotations

import difflib
from pathlib import Path

import psycopg

QUERY = Path(__file__).with_suffix(".sql").read_text("utf-8")


def objects(connection: psycopg.Connection) -> dict[str, str]:
    """Everything in the schema of the connection's search path: kind and name, and what it is."""
    return {name: str(what) for name, what in connection.execute(QUERY.encode()).fetchall()}


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line per object that is new, gone or another; below it the lines that differ."""
    lines = []
    for name in sorted({*before, *after}):
        if name not in after:
            lines.append(f"gone: {name}")
        elif name not in before:
            lines.append(f"new: {name}")
        elif before[name] != after[name]:
            lines.append(f"changed: {name}")
            changed = difflib.unified_diff(before[name].splitlines(), after[name].splitlines(), n=0, lineterm="")
            lines += [f"    {line}" for line in changed if not line.startswith(("---", "+++", "@@"))]
    return lines
