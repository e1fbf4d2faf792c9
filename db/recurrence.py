"""When a schedule fires: pure, by the time that is passed in.

A cron expression has five fields and means local time in its zone. Where clocks change it does as Debian's cron does:

- An expression that names its times (neither minute nor hour begins with ``*``) fires once for each: a time that clocks
  jump over is moved to the first moment after the jump, and of a time that comes twice the first counts.
- One whose minute or hour begins with ``*`` follows the hours that there are: none in the gap, both of those that come
  twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

#: Beyond it no calendar of ours goes; the database's CHECKs say the same.
LAST_YEAR = 9000
LONGEST_SECONDS = 366 * 86400
_MINUTE = timedelta(minutes=1)
#: More than any clock is changed by.
_NEAR = timedelta(hours=3)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?=.)(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", re.ASCII)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}", re.ASCII)
_CRON = re.compile(r"[0-9A-Za-z*,/#-]+(?: +[0-9A-Za-z*,/#-]+){4}", re.ASCII)


class Recurrence(Protocol):
    """All moments at which something happens. Times are aware; answers are UTC."""

    def after(self, moment: datetime) -> datetime | None:
        """The first that is later than ``moment``; None: there is none."""

    def latest(self, moment: datetime) -> datetime | None:
        """The last that is not later than ``moment``; None: there was none yet."""


@dataclass(frozen=True, slots=True)
class Cron:
    """The expression is searched on a calendar without a zone; what a local time is in UTC is said here, since
    libraries differ about it, and lose times where clocks change by half an hour."""

    expression: str
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        if moment.year >= LAST_YEAR:
            return None
        return self._nearest(moment, 1)

    def latest(self, moment: datetime) -> datetime | None:
        return self._nearest(moment, -1)

    def _nearest(self, moment: datetime, way: int) -> datetime | None:
        """The nearest later one (``way`` 1), or the nearest that is not later (-1)."""
        start = self._local(moment)
        if self._changes_near(moment):
            start -= way * _NEAR
        # With microseconds, a search backwards begins at the second itself.
        times = CronSim(self.expression, start.replace(microsecond=int(way < 0)), reverse=way < 0)
        best: datetime | None = None
        for local in times:
            if best is not None and way * (local - self._local(best)) > _NEAR:
                break
            for instant in self._instants(local):
                fits = instant > moment if way > 0 else instant <= moment
                if fits and (best is None or way * (best - instant) > timedelta(0)):
                    best = instant
            if best is not None and not self._changes_near(best):
                break
        return best

    def _instants(self, local: datetime) -> list[datetime]:
        """When a clock on the wall shows this time, by the rule above."""
        follows_hours = any(field.startswith("*") for field in self.expression.split()[:2])
        first, second = (local.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if self._local(first) == local:
            return [first, second] if follows_hours and second != first else [first]
        if follows_hours:
            return []
        # Jumped over; reckoned by the time before the jump it lies behind it. The jump itself was at a full minute.
        after = first.astimezone(self.zone).utcoffset()
        while (first - _MINUTE).astimezone(self.zone).utcoffset() == after:
            first -= _MINUTE
        return [first.replace(second=0)]

    def _changes_near(self, moment: datetime) -> bool:
        before, after = ((moment + side * _NEAR).astimezone(self.zone).utcoffset() for side in (-1, 1))
        return before != after

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many seconds, counted from the anchor, which is not one of them."""

    every: timedelta
    anchor: datetime

    def after(self, moment: datetime) -> datetime | None:
        return self.anchor + max(self._count(moment) + 1, 1) * self.every

    def latest(self, moment: datetime) -> datetime | None:
        count = self._count(moment)
        return self.anchor + count * self.every if count >= 1 else None

    def _count(self, moment: datetime) -> int:
        return (moment - self.anchor) // self.every


@dataclass(frozen=True, slots=True)
class Once:
    at: datetime

    def after(self, moment: datetime) -> datetime | None:
        return self.at if self.at > moment else None

    def latest(self, moment: datetime) -> datetime | None:
        return self.at if self.at <= moment else None


def upcoming(recurrence: Recurrence, moment: datetime, count: int) -> list[datetime]:
    """The next moments, at most ``count``."""
    found: list[datetime] = []
    following = recurrence.after(moment)
    while following is not None and len(found) < count:
        found.append(following)
        following = recurrence.after(following)
    return found


def zone(name: str) -> ZoneInfo:
    """A time zone by its name in the IANA database. Raises ValueError."""
    # Names of files beyond those of the database, and zones that mean something else on each host, are none.
    if not _ZONE.fullmatch(name) or name.split("/")[0].lower() in ("localtime", "posixrules", "posix", "right"):
        raise ValueError("no time zone; write it as Europe/Berlin or UTC")
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError("this host knows no time zone of this name; write it as Europe/Berlin or UTC") from None


def cron(expression: str, time_zone: ZoneInfo) -> Cron:
    """Raises ValueError for what is no expression, or names a day that never comes."""
    if len(expression) > 200 or not _CRON.fullmatch(expression):
        raise ValueError("five fields are needed: minute hour day-of-month month day-of-week, such as 30 2 * * 1-5")
    made = Cron(expression, time_zone)
    try:
        found = made.after(datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"{str(error).lower()} in {expression!r}") from None
    except (ValueError, AssertionError, TypeError):
        raise ValueError(f"{expression!r} is no cron expression") from None
    if found is None:
        raise ValueError(f"{expression!r} never comes")
    return made


def seconds(duration: str) -> int:
    """``90s``, ``15m``, ``1h30m``, ``2d`` in seconds. Raises ValueError."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError("write 90s, 15m, 1h30m or 2d")
    total = sum(int(count) * unit for count, unit in zip(match.groups(), _UNITS.values(), strict=True) if count)
    if not 1 <= total <= LONGEST_SECONDS:
        raise ValueError("from 1s to 366d are possible")
    return total


def duration(total: int) -> str:
    """Seconds as :func:`seconds` reads them, in the largest units: ``1h30m``."""
    parts = []
    for unit, size in _UNITS.items():
        count, total = divmod(total, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
