"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def moment(text: str | None, option: str) -> datetime | None:
    """``30m``, ``12h``, ``7d`` ago, or an ISO time. Raises InvalidInput."""
    from db.errors import InvalidInput

    if text is None:
        return None
    try:
        if text[:-1].isdigit() and text[-1:] in _UNITS and len(text) < 8:
            return datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
        parsed = datetime.fromisoformat(text)
        return parsed if parsed.tzinfo else parsed.astimezone()
    except (ValueError, OverflowError):
        raise InvalidInput(f"{option}: {text[:40]!r} is no time; write 30m, 12h, 7d or 2026-11-23T15:00") from None


def span(text: str, option: str) -> timedelta:
    """``90s``, ``30m``, ``12h``, ``7d``, or plain seconds. Raises InvalidInput."""
    from db.errors import InvalidInput

    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "s")
    if not (number.isascii() and number.isdigit() and len(number) < 9):
        raise InvalidInput(f"{option}: {text[:40]!r} is no duration; write 90s, 30m, 12h or 7d")
    return timedelta(seconds=int(number) * _UNITS[unit])


def seconds(text: str | None, option: str) -> int | None:
    """A :func:`span` in seconds; None where there is none. Raises InvalidInput."""
    return None if text is None else int(span(text, option).total_seconds())


def later(text: str | None, option: str) -> datetime | None:
    """``30m``, ``12h``, ``7d`` from now, or an ISO time. Raises InvalidInput."""
    from db.errors import InvalidInput

    if text is None:
        return None
    try:
        if text[-1:] in _UNITS:
            return datetime.now(UTC) + span(text, option)
        parsed = datetime.fromisoformat(text)
        return parsed if parsed.tzinfo else parsed.astimezone()
    except (ValueError, OverflowError):
        raise InvalidInput(f"{option}: {text[:40]!r} is no time; write 30m, 12h, 7d or 2026-11-23T15:00") from None
