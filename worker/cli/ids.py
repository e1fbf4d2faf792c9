"""Ids as people type them."""

from __future__ import annotations

from uuid import UUID


def job_id(text: str) -> UUID:
    """A job's id. Raises InvalidInput."""
    from db.errors import InvalidInput

    try:
        return UUID(text.removeprefix("job:"))
    except ValueError:
        raise InvalidInput(f"{text[:60]!r} is no job's id; `ops job list` shows them") from None


def deployment_id(text: str) -> int:
    """A deployment's number, also as ``deployment:42``. Raises InvalidInput."""
    from db.errors import InvalidInput

    number = text.removeprefix("deployment:").removeprefix("#")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise InvalidInput(f"{text[:60]!r} is no deployment's number; `ops deployment list` shows them")
    return int(number)
