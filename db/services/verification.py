"""Verifying the audit trail: every entry against its seal, every seal against its signature and the one before.

Entries and seals are read side by side in their common order, on one snapshot, a hundred seals at a time: memory is
bounded whatever the size of the trail.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from sqlalchemy.orm import Session

from db.errors import Unavailable
from db.repositories.audit_seals import AuditSealRepository
from db.seals import FORMS, START, ZERO, Entry, Position, Seal, SealKeys, bind
from db.services import sealing
from db.services.outside import OutsideSeals

SEALS_AT_ONCE = 100
#: More findings than this are counted, not named: a trail that is gone altogether shall not fill the memory.
MOST_FINDINGS = 10_000
#: What `ops_audit_drop_partitions` promises.
LEAST_DAYS_KEPT = 90
#: How far the sealer's clock and the database's may be apart.
CLOCKS_APART = timedelta(minutes=5)
_END = Position(2**64, 0)
_LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)
_DROPPED = b"\taudit.partition_dropped\taudit\t"


class Finding(NamedTuple):
    """One thing that is not as it was sealed. ``kind`` is for programs, ``what`` for people."""

    kind: str
    what: str
    entry: int | None = None
    seal: int | None = None


@dataclass
class Report:
    """What verifying found."""

    seals: int = 0
    entries: int = 0
    dropped: int = 0
    unsealed: int = 0
    oldest_unsealed_at: datetime | None = None
    newest_seal: int | None = None
    unverifiable: int = 0
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.findings

    def add(self, kind: str, what: str, *, entry: int | None = None, seal: int | None = None) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(kind, what, entry, seal))
        else:
            self.more_findings += 1


class _Window(NamedTuple):
    """A stretch of the trail: what a seal holds, or what none does (``why``: None says that nothing may be there)."""

    epoch: int
    form: int
    floor: int
    ceiling: int | None
    start: Position
    end: Position
    seal: Seal | None
    why: str | None = None


class Dropping(NamedTuple):
    """An entry that says that a month was dropped, and when it was sealed."""

    at: datetime
    entries: int


Progress = Callable[[int], None]


def verify(
    session: Session,
    keys: SealKeys,
    *,
    outside: OutsideSeals | None = None,
    since: datetime | None = None,
    progress: Progress | None = None,
    begun: Callable[[int], None] | None = None,
) -> Report:
    """Verify the trail, or what was sealed since a time. ``begun`` is told how many entries are to come, ``progress``
    how many were done. The session's transaction must be fresh. Raises Unavailable without a key."""
    if not keys:
        raise Unavailable(
            "the trail cannot be verified: there is no key",
            hint="set OPS_AUDIT_VERIFY_KEY (the public half) or OPS_AUDIT_SEAL_KEY",
        )
    trail = AuditSealRepository(session)
    trail.begin(snapshot=True)
    run = _Verification(trail, keys, outside, progress or (lambda _: None))
    first = trail.number_since(since) if since is not None else 1
    if begun is not None:
        begun(trail.sealed_count(first - 1))
    return run.run(first)


class _Verification:
    def __init__(
        self, trail: AuditSealRepository, keys: SealKeys, outside: OutsideSeals | None, progress: Progress
    ) -> None:
        self.trail, self.keys, self.outside, self.progress = trail, keys, outside, progress
        self.report = Report()
        self.last: Seal | None = None
        self.partial = False
        #: Why the link from the newest true seal to the next may be broken: rows in between that are none, or gaps.
        self.between: list[tuple[str, str, int]] = []
        self.missing: dict[int, int] = {}
        self.extra: dict[int, int] = {}
        self.gone: dict[str, int] = {}
        self.droppings: dict[str, Dropping] = {}
        self.months = trail.months()
        #: Of the latest seals: which transactions began after what time.
        self.began: list[tuple[int, datetime]] = []
        self.newest = sealing.newest(trail, keys)
        self.places = list(sealing.places(trail, self.newest, trail.server()))
        self.floors = self._find_floors()

    def run(self, first: int) -> Report:
        number = self._anchor(first)
        if self.outside is not None:
            self.outside.skip_to(number + 1)
        while found := self.trail.list_after(number, SEALS_AT_ONCE):
            windows: list[_Window] = []
            for seal in found:
                windows += self._link(seal, number)
                number = seal.number
            for _, stretch in groupby(windows, lambda w: (w.epoch, w.form, w.floor, w.ceiling)):
                self._compare(list(stretch))
        for kind, what, place in self.between:
            self.report.add(kind, what, seal=place)
        self._unsealed()
        self._explain_months()
        self._explain_entries()
        if self.outside is not None:
            self.outside.finish(number, self._digest, self.report)
        return self.report

    def _digest(self, number: int) -> bytes | None:
        seal = self.trail.get(number)
        return seal.digest if seal is not None else None

    def _find_floors(self) -> dict[int, int]:
        """The floor of each epoch, from its first true seal; also of one that is to begin."""
        floors: dict[int, int] = {}
        for number in self.trail.epoch_starts():
            seal = self.trail.get(number)
            if seal is not None and self.keys.flaw(seal) is None:
                floors.setdefault(seal.epoch, seal.floor_id)
        for place in self.places:
            floors.setdefault(place.epoch, place.floor)
        return floors

    def _anchor(self, first: int) -> int:
        """The number of the seal before the first to verify, which is taken as it is but for its signature."""
        for seal in reversed(self.trail.list_after(max(0, first - 1 - SEALS_AT_ONCE), SEALS_AT_ONCE)):
            if seal.number < first and self.keys.flaw(seal) is None:
                self.last, self.partial = seal, True
                return first - 1
        return 0

    def _link(self, seal: Seal, before: int) -> Iterator[_Window]:
        """Check a seal by itself and against the one before; answers the stretches of the trail up to its end."""
        if seal.number > before + 1:
            gap = f"seal {before + 1}" if seal.number == before + 2 else f"seals {before + 1} to {seal.number - 1}"
            are = "is" if seal.number == before + 2 else "are"
            self.between.append(("seal_missing", f"{gap} {are} missing", before + 1))
        flaw = self.keys.flaw(seal)
        if self.outside is not None:
            self.outside.compare(seal.number, seal.digest, self.report)
        if flaw is None and seal.form not in FORMS:
            raise Unavailable(f"seal {seal.number} was made by a later release: upgrade this one")
        if flaw is not None:
            kind = "seal_unknown_key" if seal.key_id not in self.keys else "seal_forged"
            self.between.append((kind, f"seal {seal.number} {flaw}", seal.number))
            return
        whole = seal.previous == (self.last.digest if self.last is not None else ZERO)
        for kind, what, number in self.between:
            # A number that is gone and that nothing was linked to was no seal: somebody has cleared away a forgery.
            if kind != "seal_missing" or not whole:
                self.report.add(kind, what, seal=number)
        if not whole and not self.between:
            self.report.add("chain_broken", f"seal {seal.number} does not follow the one before it", seal=seal.number)
        self.between = []
        yield from self._windows(seal, None if whole else "its seal is missing")
        self.last = seal
        self.report.seals += 1
        self.report.newest_seal = seal.number

    def _windows(self, seal: Seal, why: str | None) -> Iterator[_Window]:
        last = self.last
        if last is not None and last.epoch < seal.epoch:
            # What an epoch left over: it was closed when nothing more was to come.
            yield self._window(last, last.end, _END, None, why)
        start = last.end if last is not None and last.epoch == seal.epoch else START
        if start < seal.start:
            yield self._window(seal, start, seal.start, None, why)
        yield self._window(seal, seal.start, seal.end, seal, None)

    def _window(self, of: Seal, start: Position, end: Position, seal: Seal | None, why: str | None) -> _Window:
        later = [floor for epoch, floor in self.floors.items() if epoch > of.epoch]
        ceiling = min(later) if later else None
        return _Window(of.epoch, of.form, of.floor_id, ceiling, start, end, seal, why)

    def _compare(self, windows: Sequence[_Window]) -> None:
        """Read one stretch of the trail and deal its entries out to the windows."""
        first = windows[0]
        until = windows[-1].end
        entries = self.trail.entries(
            after=first.start,
            until=None if until == _END else until,
            floor=first.floor,
            ceiling=first.ceiling,
            form=first.form,
        )
        upcoming = next(entries, None)
        for window in windows:
            end = window.end
            found: list[Entry] = []
            while upcoming is not None and (upcoming.xid, upcoming.id) <= end:
                if window.seal is None:
                    self._without_seal(upcoming, window)
                else:
                    found.append(upcoming)
                upcoming = next(entries, None)
            if window.seal is not None:
                self._against(window.seal, found)

    def _without_seal(self, entry: Entry, window: _Window) -> None:
        if window.why is not None:
            self.report.unverifiable += 1
        else:
            self._keep(self.extra, entry.id, entry.xid)

    def _against(self, seal: Seal, found: list[Entry]) -> None:
        """Compare the entries of a seal's stretch with what it holds."""
        if bind(found) == (seal.entries, seal.root):
            true = found
        elif not found and seal.month not in self.months:
            self.gone[seal.month] = self.gone.get(seal.month, 0) + seal.count
            true = []
        else:
            true = self._name(seal, found)
        self.report.entries += len(true)
        self._check_times(seal, true)
        for entry in true:
            if _DROPPED in entry.line:
                self._remember_dropping(entry, seal.sealed_at)
        self.progress(seal.count)

    def _check_times(self, seal: Seal, found: list[Entry]) -> None:
        """An entry cannot be older than its transaction, which had not begun when an earlier seal was made."""
        if found and seal.first_at < self._began(found[-1].xid) - CLOCKS_APART:
            for entry in found:
                began = self._began(entry.xid)
                if datetime.fromisoformat(entry.at) < began - CLOCKS_APART:
                    what = f"entry {entry.id} is dated {entry.at}, but its transaction began after {began.isoformat()}"
                    self.report.add("entry_backdated", what, entry=entry.id, seal=seal.number)
        if self.began and seal.next_xid < self.began[-1][0]:
            self.began = []  # another cluster's
        self.began = [*self.began[-1000:], (seal.next_xid, seal.sealed_at)]

    def _began(self, xid: int) -> datetime:
        """The latest time of which a seal tells that this transaction had not begun."""
        index = bisect.bisect_right(self.began, xid, key=lambda each: each[0])
        return self.began[index - 1][1] if index else _LONG_AGO

    def _name(self, seal: Seal, found: list[Entry]) -> list[Entry]:
        """Say which entries of a stretch differ from what its seal holds; answers those that do not."""
        expected = dict(seal.hashes())
        true: list[Entry] = []
        others: list[Entry] = []
        for entry in found:
            same = expected.get(entry.id) == entry.hash[:16]
            (true if same else others).append(entry)
            if same:
                del expected[entry.id]
        for entry in others:
            if expected.pop(entry.id, None) is not None:
                self.report.add("entry_changed", f"entry {entry.id} was changed", entry=entry.id, seal=seal.number)
            else:
                self._keep(self.extra, entry.id, entry.xid)
        if not others and not expected:
            what = f"the entries of seal {seal.number} were changed: their hashes agree by half only"
            self.report.add("entries_changed", what, seal=seal.number)
        for id_ in expected:
            self._keep(self.missing, id_, seal.number)
        return true

    def _keep(self, odd: dict[int, int], id_: int, where: int) -> None:
        if len(odd) < MOST_FINDINGS:
            odd[id_] = where
        else:
            self.report.more_findings += 1

    def _remember_dropping(self, entry: Entry, sealed_at: datetime) -> None:
        """An entry that has its seal says that a month was dropped. The sealer's clock counts, not the entry's."""
        told = re.search(rb"\taudit_logs_(\d{4})_(\d{2})\t.*\"entries\": (\d+)", entry.line)
        if told is not None:
            month = f"{told[1].decode()}-{told[2].decode()}"
            self.droppings.setdefault(month, Dropping(sealed_at, int(told[3])))

    def _unsealed(self) -> None:
        """What the newest true seal has not come to."""
        report = self.report
        for place in self.places:
            waiting = self.trail.unsealed(place.start, place.floor, place.ceiling)
            report.unsealed += waiting.count
            times = [at for at in (report.oldest_unsealed_at, waiting.oldest_at) if at is not None]
            report.oldest_unsealed_at = min(times, default=None)
            if self.gone and waiting.count:
                for entry in self.trail.entries(after=place.start, floor=place.floor, ceiling=place.ceiling):
                    if _DROPPED in entry.line:
                        self._remember_dropping(entry, datetime.now(UTC))
        (place, *more) = self.places
        if more:
            report.notes.append("the trail was restored from another server and is not yet sealed on this one")
        elif self.newest is not None:
            self._impossible(place)

    def _impossible(self, place: sealing.Place) -> None:
        for id_, xid, writer, following in self.trail.impossible(place.start, place.floor, MOST_FINDINGS):
            what = (
                f"entry {id_} claims transaction {xid}, which has not begun yet (the next is {following})"
                if xid >= following
                else f"entry {id_} claims transaction {xid} but was written by {writer}"
            )
            self.report.add("entry_impossible", what, entry=id_)

    def _explain_months(self) -> None:
        """Entries that went with their month: as retention does it, or not."""
        for month, count in sorted(self.gone.items()):
            dropping = self.droppings.get(month)
            if dropping is None:
                what = (
                    f"{count} entries of {month} were removed with their partition, and no entry says that it was due"
                )
                self.report.add("month_removed", what)
            elif dropping.at < _end_of(month) + timedelta(days=LEAST_DAYS_KEPT):
                what = f"{count} entries of {month} were dropped before they were {LEAST_DAYS_KEPT} days old"
                self.report.add("month_removed", what)
            elif dropping.entries < count and not self.partial:
                what = f"{count - dropping.entries} entries of {month} were removed before the month was dropped"
                self.report.add("month_removed", what)
            else:
                self.report.dropped += count

    def _explain_entries(self) -> None:
        """Tell what was moved from what was removed or inserted."""
        elsewhere = self.trail.positions(list(self.missing)) if self.missing else {}
        for id_, seal in self.missing.items():
            if (xid := elsewhere.get(id_)) is not None:
                what = (
                    f"entry {id_} was moved: it claims transaction {xid}, in whose place seal {seal} does not hold it"
                )
                self.report.add("entry_moved", what, entry=id_, seal=seal)
                self.extra.pop(id_, None)
            else:
                self.report.add("entry_removed", f"entry {id_} was removed", entry=id_, seal=seal)
        for id_, xid in self.extra.items():
            what = f"entry {id_} was inserted: it claims transaction {xid}, which was sealed without it"
            self.report.add("entry_inserted", what, entry=id_)


def _end_of(month: str) -> datetime:
    year, number = map(int, month.split("-"))
    return datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
