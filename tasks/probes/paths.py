"""JSON paths, followed for a bounded time: for some of them some documents take for ever, and the documents are
strangers'."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import regex
from iregexp_check import check
from jsonpath_rfc9535 import JSONPathEnvironment
from jsonpath_rfc9535.function_extensions import Match, Search
from jsonpath_rfc9535.function_extensions._pattern import map_re


def values(path: str, document: Any, seconds: float) -> list[Any]:
    """What stands at a path. Raises TimeoutError, JSONPathError, RecursionError.

    For a thread of its own: the library is Python alone, so that its every step is a call at which the time can be
    looked at, and what it leaves to a pattern is bounded by the pattern's own limit.
    """
    end = time.monotonic() + seconds
    paths = JSONPathEnvironment()
    paths.function_extensions |= {"match": _Match(end), "search": _Search(end)}

    def watch(frame: FrameType, _event: str, _found: Any) -> None:
        # In the library's own steps alone: what the collector calls in between would swallow it.
        if time.monotonic() > end and frame.f_globals.get("__name__", "").startswith("jsonpath_rfc9535"):
            raise TimeoutError

    before = sys.gettrace()
    sys.settrace(watch)  # this thread's
    try:
        return list(paths.find(path, document).values())
    finally:
        sys.settrace(before)


class _Match(Match):
    """The standard's function, whose pattern ends by a certain time."""

    def __init__(self, end: float) -> None:
        self._end = end

    def __call__(self, string: str, pattern: object) -> bool:
        return _finds(regex.fullmatch, pattern, string, self._end)


class _Search(Search):
    """The standard's function, whose pattern ends by a certain time."""

    def __init__(self, end: float) -> None:
        self._end = end

    def __call__(self, string: str, pattern: object) -> bool:
        return _finds(regex.search, pattern, string, self._end)


def _finds(look: Callable[..., Any], pattern: object, string: object, end: float) -> bool:
    """As the library does it. Raises TimeoutError."""
    if not isinstance(pattern, str) or not isinstance(string, str) or not check(pattern):
        return False
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    try:
        return look(map_re(pattern), string, regex.VERSION1, timeout=left, concurrent=True) is not None
    except regex.error:
        return False
