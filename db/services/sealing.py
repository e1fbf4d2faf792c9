"""Sealing the audit trail: a background job that no writer waits for.

Entries are sealed in the order of (xid, id), once no transaction is open that could still put one before them: below
the oldest one that runs (`pg_snapshot_xmin`). Time and id say nothing of that order.

A restore into another cluster brings entries whose transaction ids mean nothing there. Then the epoch is closed (what
the seals had not come to is sealed as the former cluster's) and the next one begins, in which entries above a floor of
ids are sealed in the order of the new cluster's transactions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter

from sqlalchemy.orm import Session

from db.errors import Refused
from db.repositories.audit_seals import AuditSealRepository, Server
from db.seals import FORM, START, ZERO, Entry, Position, Seal, SealKeys, bind

#: Entries per seal.
BATCH = 5000


@dataclass(frozen=True, slots=True)
class Sealed:
    """A seal that was added, and whether more waits."""

    seal: Seal
    more: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next seal goes on."""

    cluster: int
    epoch: int
    floor: int
    start: Position
    ceiling: int | None = None


def seal_next(session: Session, keys: SealKeys, *, limit: int = BATCH) -> Sealed | None:
    """Add the next seal; None when nothing waits, or somebody else is sealing.

    The session's transaction must be fresh, and hold nothing else. Raises Refused without a private key, and where
    the trail was sealed with a key this process does not know.
    """
    if keys.signer is None:
        raise Refused("there is no key to seal with", hint="ops audit new-key, then set OPS_AUDIT_SEAL_KEY")
    trail = AuditSealRepository(session)
    trail.begin(snapshot=False)
    if not trail.lock():
        return None
    last = _require_newest(trail, keys)
    began, here = datetime.now(UTC), trail.server()
    for place in places(trail, last, here):
        found = list(
            trail.entries(
                after=place.start, floor=place.floor, ceiling=place.ceiling, settled=place.ceiling is None, limit=limit
            )
        )
        if found:
            _, month = next(groupby(found, attrgetter("month")))
            run = list(month)
            seal = keys.signer.sign(_seal(trail.newest_number() + 1, began, here.next_xid, last, place, run))
            trail.add(seal)
            return Sealed(seal, more=len(found) == limit or len(run) < len(found) or place.ceiling is not None)
    return None


def newest(trail: AuditSealRepository, keys: SealKeys) -> Seal | None:
    """The newest seal that is one: whoever runs the platform can add rows that are none. None where there is none."""
    return next((seal for seal in trail.newest_first() if keys.flaw(seal) is None), None)


def _require_newest(trail: AuditSealRepository, keys: SealKeys) -> Seal | None:
    """As `newest`. Raises Refused where a key is not known that may have made seals: sealing would begin anew."""
    found = newest(trail, keys)
    unknown = set() if found is not None else {seal.key_id for seal in trail.newest_first() if seal.key_id not in keys}
    if unknown:
        raise Refused(
            f"the trail was sealed with key {', '.join(sorted(unknown)[:3])}, which this process does not know",
            hint="put its public half into OPS_AUDIT_VERIFY_KEY",
        )
    return found


def places(trail: AuditSealRepository, last: Seal | None, here: Server) -> Iterator[Place]:
    """Where to look for entries: in the present epoch, or first in one that ends and then in one that begins."""
    if last is not None and last.cluster == here.cluster and last.to_xid < here.next_xid:
        yield Place(here.cluster, last.epoch, last.floor_id, last.end)
        return
    epoch, floor, end = (last.epoch, last.floor_id, last.end) if last is not None else (1, 0, START)
    # Ids go on where the restored ones end: all up to here are the former cluster's. None of them is still to come.
    ceiling = max(last.highest_id if last is not None else 0, trail.highest_of_elsewhere())
    if ceiling:
        yield Place(last.cluster if last is not None else 0, epoch, floor, end, ceiling)
        epoch += 1
    yield Place(here.cluster, epoch, ceiling, START)


def _seal(number: int, began: datetime, next_xid: int, last: Seal | None, place: Place, run: list[Entry]) -> Seal:
    entries, root = bind(run)
    times = [entry.at for entry in run]
    return Seal(
        number=number,
        sealed_at=began,
        cluster=place.cluster,
        epoch=place.epoch,
        floor_id=place.floor,
        highest_id=max(last.highest_id if last is not None else 0, *(entry.id for entry in run)),
        from_xid=place.start.xid,
        from_id=place.start.id,
        to_xid=run[-1].xid,
        to_id=run[-1].id,
        next_xid=next_xid,
        count=len(run),
        first_at=datetime.fromisoformat(min(times)),
        last_at=datetime.fromisoformat(max(times)),
        form=FORM,
        entries=entries,
        root=root,
        previous=last.digest if last is not None else ZERO,
        digest=b"",
        key_id="",
        signature=b"",
    )


@dataclass(frozen=True, slots=True)
class State:
    """How far the trail is sealed. ``newest``: the newest seal, None before the first."""

    newest: Seal | None
    unsealed: int
    oldest_unsealed_at: datetime | None


def state(session: Session, keys: SealKeys) -> State:
    """How far the trail is sealed, by the seals that these keys accept."""
    trail = AuditSealRepository(session)
    last = newest(trail, keys)
    waiting = [trail.unsealed(place.start, place.floor, place.ceiling) for place in places(trail, last, trail.server())]
    return State(
        last,
        sum(each.count for each in waiting),
        min((each.oldest_at for each in waiting if each.oldest_at is not None), default=None),
    )
