"""What probes do with what strangers send: search it within bounds, quote it harmlessly."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from db.probes import Seen
from db.states import CheckStatus
from tasks.probes.net import Unable

#: For how long a pattern may search, in seconds.
SEARCH_SECONDS = 0.5
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")


async def finds(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text. Raises Unable where it takes too long: some patterns do for some texts."""
    import regex

    def search() -> bool:
        return regex.search(pattern, text, timeout=SEARCH_SECONDS, concurrent=True) is not None

    try:
        return await asyncio.to_thread(search)  # it may overrun its limit, and shall hold up nobody else
    except TimeoutError:
        raise Unable(f"the pattern searched for longer than {SEARCH_SECONDS:g} s; write a simpler one") from None
    except regex.error:
        raise Unable("the pattern is no regular expression here") from None


def quoted(text: str, length: int = 80) -> str:
    """A stranger's words in a message: one line, no control characters, bounded."""
    shown = _UNSEEN.sub(" ", text[: length + 1]).strip()
    return f"{shown[:length]!r}{'...' if len(text) > length else ''}"


def found_slow(seconds: float, limit: float | None, facts: Mapping[str, Any] | None = None) -> Seen:
    """Up, or degraded where it took longer than a limit."""
    if limit is not None and seconds > limit:
        said = f"it took {seconds:.3f} s, more than {limit:g} s"
        return Seen(CheckStatus.DEGRADED, seconds, said, facts or {}, is_slow=True)
    return Seen(CheckStatus.UP, seconds, None, facts or {})
