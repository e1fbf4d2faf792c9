"""`ops status-page`: the public page as a file, for a web server that is not here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.output import out


def register(app: typer.Typer) -> None:
    app.command(name="status-page")(status_page)


def status_page(
    folder: Annotated[Path, typer.Option("--out", help="The folder for index.html; made where it is missing.")],
) -> None:
    """Write the status page of all public checks as one self-contained file. Example: ops status-page --out site"""
    from db.connection import get_db_session
    from db.services import status_pages
    from db.settings import get_settings
    from worker.serve import page

    with get_db_session(read_only=True) as session:
        found = status_pages.gather(session)
    text = page.render(found, get_settings().status_title)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    fresh = folder / f".index.html.{os.getpid()}"
    try:
        fresh.write_text(text, "utf-8")
        fresh.replace(path)  # whoever reads it meanwhile sees the one before
    finally:
        fresh.unlink(missing_ok=True)
    shown = len(found.checks)
    lines = [f"written: {path}, with {shown} public checks"]
    if not shown:
        lines.append("next: ops check edit NAME --public")
    out.result({"path": str(path), "checks": shown}, *lines)
