"""A file whose age tells whether a process can do its work: a health check that costs one look at a directory."""

from __future__ import annotations

from pathlib import Path

import structlog

log = structlog.get_logger()


def touch(path: Path | None) -> None:
    """Say that this process can work now. A path that cannot be written is no reason to stop working."""
    if path is None:
        return
    try:
        path.touch()
    except OSError as error:
        log.warning("alive_file_not_written", path=str(path), error=type(error).__name__)
