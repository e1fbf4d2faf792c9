"""Documents that people write, as YAML: plain values, and the line on which each stands.

Of YAML only what JSON can say, in the spelling of YAML 1.2: ``yes`` and ``03:00`` are texts. No aliases (a few lines of
them are a gigabyte), no tags (they make objects), no second document, no key twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from db.errors import InvalidInput

MOST_BYTES = 1_000_000
MOST_VALUES = 50_000
DEEPEST = 20
LONGEST_KEY = 200

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)", re.ASCII)
#: With a point, as everybody's YAML has it: 1e3 is a text to some.
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+]?[0-9]{1,9})?", re.ASCII)
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
#: Nothing that a person can see, or a line end of which not everybody knows.
_UNSEEN = re.compile(
    r"[^\t\n\r\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

Path = tuple[str | int, ...]


@dataclass
class Document:
    """Values, and where they stand. ``source`` is the file's name, for people."""

    source: str
    values: Any = None
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of a place, or of the nearest one around it that is there."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def place(self, path: Path) -> str:
        """``ops.yaml:12: applications.web.command``."""
        return f"{self.source}:{self.line(path)}: {'.'.join(str(part)[:80] for part in path)}".removesuffix(": ")


def read(data: bytes, source: str) -> Document:
    """Raises InvalidInput: one line with the file's name and the line's number."""
    text = _text(data, source)
    builder = _Builder(source)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and error.context_mark and mark.line > text.count("\n"):
            mark = error.context_mark  # what was never closed is found missing after the end
        what = error.problem or error.context or "this is no YAML"
        raise InvalidInput(f"{source}:{mark.line + 1 if mark else 1}: {what}") from None
    except (yaml.YAMLError, RecursionError):
        raise InvalidInput(f"{source}:{builder.at}: from here on this is no YAML") from None
    return Document(source, builder.root, builder.lines)


def write(values: Any) -> str:
    """As YAML that :func:`read` reads as the same."""
    text: str = yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=100)
    if _UNSEEN.search(text):
        text = yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=False, width=100)
    return text


def _text(data: bytes, source: str) -> str:
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"{source}:1: more than {MOST_BYTES} bytes; write several documents and apply each")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{source}:{line}: this is no UTF-8 text") from None
    if found := _UNSEEN.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise InvalidInput(f"{source}:{line}: U+{ord(found[0]):04X} cannot be seen; write it in quotes as an escape")
    return text


@dataclass
class _Open:
    """A mapping or a list that is being filled; ``key`` waits for its value."""

    path: Path
    values: Any
    key: str | None = None


class _Builder:
    """Values from events: nothing recursive, and nothing is built before it was looked at."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.root: Any = None
        self.lines: dict[Path, int] = {}
        self.at = 1
        self._open: list[_Open] = []
        self._documents = 0
        self._values = 0

    def take(self, event: Any) -> None:
        self.at = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    self._refuse("a second document begins here; put everything into one")
            case yaml.AliasEvent():
                self._refuse("an alias (*) is not allowed; write it out")
            case yaml.ScalarEvent():
                self._plain(event)
                self._scalar(event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._plain(event)
                values: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
                path = self._put(values)
                if len(self._open) >= DEEPEST:
                    self._refuse(f"nested deeper than {DEEPEST}")
                self._open.append(_Open(path, values))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()

    def _plain(self, event: Any) -> None:
        if event.anchor is not None:
            self._refuse("an anchor (&) is not allowed; write it out where it is needed")
        if event.tag is not None:
            self._refuse("a tag (!) is not allowed")

    def _scalar(self, event: Any) -> None:
        around = self._open[-1] if self._open else None
        if around is not None and isinstance(around.values, dict) and around.key is None:
            self._key(around, event.value)
            return
        self._put(self._resolved(event.value) if event.implicit[0] else event.value)

    def _key(self, around: _Open, key: str) -> None:
        if len(key) > LONGEST_KEY:
            self._refuse(f"a key of more than {LONGEST_KEY} characters")
        if key in around.values:
            self._refuse(f"{key} stands here a second time, after line {self.lines[(*around.path, key)]}")
        around.key = key
        self.lines[(*around.path, key)] = self.at

    def _put(self, value: Any) -> Path:
        """Give a value to what is open; answers its place."""
        self._values += 1
        if self._values > MOST_VALUES:
            self._refuse(f"more than {MOST_VALUES} values")
        if not self._open:
            self.root = value
            self.lines[()] = self.at
            return ()
        around = self._open[-1]
        if isinstance(around.values, list):
            path: Path = (*around.path, len(around.values))
            self.lines[path] = self.at
            around.values.append(value)
            return path
        if around.key is None:
            self._refuse("a key is a text, neither a list nor a mapping")
        key, around.key = around.key, None
        around.values[key] = value
        return (*around.path, key or "")

    def _resolved(self, text: str) -> Any:
        if text.lower() in _WORDS and text in (text.lower(), text.upper(), text.capitalize()):
            return _WORDS[text.lower()]
        if _INT.fullmatch(text):
            if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
                self._refuse("a number beyond 64 bits; put it in quotes if it is a text")
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                self._refuse("a number that is too large")
            return number
        return text

    def _refuse(self, why: str) -> None:
        raise InvalidInput(f"{self.source}:{self.at}: {why}")
