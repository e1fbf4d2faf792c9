"""Keeps secrets out of output: every occurrence of a value is replaced, also one that comes in two pieces."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

MASK = "[secret]"
#: Shorter values would mask half of every log ("1", "no"); they are too short to be secrets.
MIN_LENGTH = 4


class Masker:
    """Replaces a fixed set of values, each line of those that have several, and their usual spellings."""

    def __init__(self, secrets: Iterable[str]) -> None:
        words: set[str] = set()
        for secret in secrets:
            for part in {secret, secret.strip(), *secret.splitlines()}:
                words |= _spellings(part)
        # The longest first, so that of two overlapping values none is left in part.
        self._words = sorted((word for word in words if len(word) >= MIN_LENGTH), key=len, reverse=True)
        self._by_head: dict[str, list[str]] = {}
        for word in self._words:
            self._by_head.setdefault(word[:MIN_LENGTH], []).append(word)
        self._pattern = _any_of(self._words)
        self._heads = _any_of(self._by_head)

    def mask(self, text: str) -> str:
        """The text without the values."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def stream(self) -> MaskedStream:
        """A masker for text that comes in pieces."""
        return MaskedStream(self)

    def split(self, text: str) -> tuple[str, str]:
        """Of a text that will go on: what may be shown of it now, masked, and the rest, which begins where a value may
        begin that does not end here. What is shown in the end is what :meth:`mask` would make of the whole."""
        if self._pattern is None:
            return text, ""
        shown: list[str] = []
        at, rest_at = 0, self._unfinished(text, 0)
        for found in self._pattern.finditer(text):
            if rest_at <= found.start():
                break  # a longer value may begin where this one does
            shown += [text[at : found.start()], MASK]
            at = found.end()
            if rest_at < at:
                rest_at = self._unfinished(text, at)
        shown.append(text[at:rest_at])
        return "".join(shown), text[rest_at:]

    def _unfinished(self, text: str, start: int) -> int:
        """Where, from a place on, a value may begin that goes on behind the end of the text; else that end."""
        assert self._heads is not None
        place = max(start, len(text) - len(self._words[0]) + 1)
        while found := self._heads.search(text, place):
            place = found.start()
            tail = text[place:]
            if any(len(word) > len(tail) and word.startswith(tail) for word in self._by_head[tail[:MIN_LENGTH]]):
                return place
            place += 1
        for place in range(max(start, len(text) - MIN_LENGTH + 1), len(text)):
            if any(head.startswith(text[place:]) for head in self._by_head):
                return place
        return len(text)


class MaskedStream:
    """Text in pieces: what may be the beginning of a value waits for the next piece."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._rest = ""

    def feed(self, text: str) -> str:
        """What may be shown now."""
        shown, self._rest = self._masker.split(self._rest + text)
        return shown

    def close(self) -> str:
        """The rest."""
        rest, self._rest = self._rest, ""
        return self._masker.mask(rest)


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    alternatives = "|".join(map(re.escape, words))
    return re.compile(alternatives) if alternatives else None


def _spellings(secret: str) -> set[str]:
    """As it is, and as programs write it: in a URL, JSON, XML, a shell's trace, Python, hex, base64."""
    if not secret:
        return set()
    raw = secret.encode("utf-8", "replace")
    found = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    found |= {each.replace("/", "\\/") for each in found}
    found |= {re.sub(r"(?<=\\u)[0-9a-f]{4}", lambda hit: hit[0].upper(), each) for each in found}
    in_url = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    found |= in_url | {re.sub("%..", lambda hit: hit[0].lower(), each) for each in in_url}
    found |= {html.escape(secret, quote=False), html.escape(secret), html.escape(secret).replace("&#x27;", "&#39;")}
    found |= {secret.replace("'", "'\\''"), shlex.quote(secret).strip("'"), repr(secret)[1:-1]}
    found |= {raw.hex(), raw.hex().upper()}
    for encoded in _base64(raw):
        found |= {encoded, encoded.replace("+", "-").replace("/", "_")}
    return found


def _base64(raw: bytes) -> Iterator[str]:
    """Alone, in lines as `base64` and `openssl` break it, and inside of something longer (``user:password``), wherever
    it begins there: then its first and last character may belong to its neighbours as well."""
    alone = base64.b64encode(raw).decode()
    yield alone.rstrip("=")
    for width in (76, 64):
        if len(alone) > width:
            yield from (alone[start : start + width].rstrip("=") for start in range(0, len(alone), width))
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw).decode()
        yield encoded[-(-8 * shift // 6) : 8 * (shift + len(raw)) // 6]
