"""Values that nobody shall read, from a prompt or from stdin, never from the command line."""

from __future__ import annotations

import sys

MAX_BYTES = 1_000_000


def read(*names: str) -> list[str]:
    """One value for each name: at a prompt without echo, else a line of stdin each. Raises InvalidInput when one is
    missing or empty."""
    from db.errors import InvalidInput

    if sys.stdin.isatty():
        import typer

        values = [str(typer.prompt(name, hide_input=True)) for name in names]
    else:
        try:
            values = sys.stdin.buffer.read(MAX_BYTES).decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise InvalidInput("what comes in is UTF-8 text") from None
    values = [value.strip() for value in values]
    if len(values) < len(names) or not all(values[: len(names)]):
        lines = "type it at the prompt, or pipe it in" if len(names) == 1 else "pipe them in, a line each"
        raise InvalidInput(f"needed: {', then '.join(names)}; {lines}")
    return values[: len(names)]
