"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def moment(text: str | None, option: str) -> datetime | None:
    """``30m``, ``12h``, ``7d`` ago, or an ISO time. Raises InvalidInput."""
    from db.errors import InvalidInput

    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    try:
        if text[:-1].isdigit() and text[-1:] in units and len(text) < 8:
            return datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * units[text[-1]])
        parsed = datetime.fromisoformat(text)
        return parsed if parsed.tzinfo else parsed.astimezone()
    except (ValueError, OverflowError):
        raise InvalidInput(f"{option}: {text[:40]!r} is no time; write 30m, 12h, 7d or 2026-11-23T15:00") from None
