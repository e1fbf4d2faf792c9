"""The newest seals outside the database, where its owner cannot change them: a file with a line of JSON for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from db.errors import Unavailable
from db.seals import Seal, SealKeys

if TYPE_CHECKING:
    from db.services.verification import Report

#: Lines out of order (several sealers, a database set back) that are looked up one by one at the end.
MOST_LATE = 10_000


def line(seal: Seal) -> str:
    """What is kept of a seal outside."""
    said = {
        "number": seal.number, "digest": seal.digest.hex(), "signature": seal.signature.hex(),
        "at": seal.sealed_at.isoformat(),
    }  # fmt: skip
    return json.dumps(said) + "\n"


def append(path: Path, seal: Seal) -> None:
    """Add a seal that is committed. Raises OSError."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line(seal))


class _Line(NamedTuple):
    file: Path
    place: int
    number: int
    digest: bytes
    signature: bytes
    at: str


class OutsideSeals:
    """The lines of such files, read once and side by side with the seals in the database."""

    def __init__(self, paths: Sequence[Path], keys: SealKeys) -> None:
        for path in paths:
            if not path.is_file():
                raise Unavailable(f"{path} cannot be read: there is no such file")
        self._keys = keys
        self._streams = [_Stream(path) for path in paths]
        self._late: list[_Line] = []

    def skip_to(self, number: int) -> None:
        """Leave out what is about seals before this one."""
        for stream in self._streams:
            while stream.head is not None and stream.head.number < number:
                stream.advance()

    def compare(self, number: int, digest: bytes, report: Report) -> None:
        """Compare what the files hold of this seal; numbers only grow from call to call."""
        for stream in self._streams:
            while stream.head is not None and stream.head.number <= number:
                if stream.head.number == number:
                    self._check(stream.head, digest, report)
                elif len(self._late) < MOST_LATE:
                    self._late.append(stream.head)
                stream.advance()

    def finish(self, newest: int, digest_of: Callable[[int], bytes | None], report: Report) -> None:
        """What is left is newer than the newest seal in the database: its end is cut off."""
        for late in self._late:
            digest = digest_of(late.number)
            if digest is not None:
                self._check(late, digest, report)
        for stream in self._streams:
            beyond: _Line | None = None
            while stream.head is not None:
                if stream.head.number > newest and self._is_ours(stream.head, report):
                    beyond = max(beyond or stream.head, stream.head, key=lambda each: each.number)
                stream.advance()
            if beyond is not None:
                what = (
                    f"the end of the trail is cut off: {beyond.file} holds seals up to {beyond.number} "
                    f"(of {beyond.at}), the database up to {newest}"
                )
                report.add("tail_cut_off", what, seal=newest + 1)
            for place in stream.unreadable:
                report.add("outside_unreadable", f"line {place} of {stream.path} cannot be read")

    def _check(self, found: _Line, digest: bytes, report: Report) -> None:
        if found.digest != digest and self._is_ours(found, report):
            what = f"seal {found.number} is not the one that line {found.place} of {found.file} holds"
            report.add("seal_replaced", what, seal=found.number)

    def _is_ours(self, found: _Line, report: Report) -> bool:
        if self._keys.accept(found.digest, found.signature):
            return True
        report.add("outside_forged", f"line {found.place} of {found.file} is not signed with a key of ours")
        return False


class _Stream:
    """One file's lines; ``head`` is the next one, None at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable: list[int] = []
        self._lines = self._read()
        self.head: _Line | None = None
        self.advance()

    def advance(self) -> None:
        self.head = next(self._lines, None)

    def _read(self) -> Iterator[_Line]:
        with self.path.open("rb") as file:
            for place, text in enumerate(file, 1):
                try:
                    said = json.loads(text)
                    yield _Line(
                        self.path, place, int(said["number"]), bytes.fromhex(said["digest"]),
                        bytes.fromhex(said["signature"]), str(said["at"])[:40],
                    )  # fmt: skip
                except (ValueError, KeyError, TypeError):
                    # The last line may have been cut in the middle by a crash.
                    if text.endswith(b"\n"):
                        self.unreadable.append(place)
