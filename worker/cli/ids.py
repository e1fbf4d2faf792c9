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


def number(text: str, noun: str) -> int:
    """The number of an alert, a silence, a route ..., also as ``alert:3``. Raises InvalidInput."""
    from db.errors import InvalidInput

    digits = text.removeprefix(f"{noun}:").removeprefix("#")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        article = "an" if noun[0] in "aeio" else "a"
        raise InvalidInput(f"{text[:60]!r} is not the number of {article} {noun}; `ops {noun} list` shows them")
    return int(digits)
