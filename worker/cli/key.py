"""`ops encryption-key`: the keys that secrets are sealed with."""

from __future__ import annotations

import typer

from worker.cli.output import out

app = typer.Typer(help="Encryption keys.")


@app.command()
def new() -> None:
    """Print a fresh key for ENCRYPTION_KEY; it is stored nowhere. Example: ops encryption-key new"""
    from db.encryption import new_key

    key = new_key()
    out.result({"key": key}, key)


@app.callback()
def keys() -> None:
    """Encryption keys."""
