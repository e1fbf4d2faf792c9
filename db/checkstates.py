"""How a check's state follows from what its runs have seen. Pure: no clock, no database.

Four streaks are counted over the runs that could see anything, since a state needs several of one mind to change:

======== =========================================== ============================================
streak   counts the latest runs that saw             and changes the state
======== =========================================== ============================================
downs    down                                        to down, at the failure threshold
bads     down or degraded                            from up to degraded, at the failure threshold
goods    up                                          to up, at the success threshold
betters  up or degraded                              from down, at the success threshold
======== =========================================== ============================================

From unknown (nothing is known yet) the first run that sees up or degraded decides. A run that could not see
(``unknown``) moves none of them, changes no state and is no slot of flapping; it is counted by itself.

While the newest observation and the state differ the check is *soft*: not confirmed. Flapping is an observation other
than the one before in more than 30 % of the last 20, until it is in less than 25 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from db.states import CheckState, CheckStatus

SLOTS = 20
FLAPS_ABOVE, STEADY_BELOW = 0.30, 0.25
#: A streak is counted no further.
LONGEST = 1_000_000

_SEEN = {
    CheckStatus.UP: CheckState.UP,
    CheckStatus.DEGRADED: CheckState.DEGRADED,
    CheckStatus.DOWN: CheckState.DOWN,
}
_RANK = {CheckState.UP: 0, CheckState.DEGRADED: 1, CheckState.DOWN: 2}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a check stands. ``seen``: the newest observation, None before the first; ``changes``: 20 slots, the newest
    in the lowest bit, set where an observation differed from the one before; ``blinds``: the latest runs that could
    see nothing."""

    state: CheckState = CheckState.UNKNOWN
    seen: CheckState | None = None
    downs: int = 0
    bads: int = 0
    goods: int = 0
    betters: int = 0
    blinds: int = 0
    changes: int = 0
    is_flapping: bool = False

    @property
    def is_soft(self) -> bool:
        """Whether the newest observation is not confirmed."""
        return self.seen is not None and self.seen is not self.state

    @property
    def is_failing_softly(self) -> bool:
        """Whether something worse than the state was seen, which is worth another look soon."""
        if self.seen is None or self.state is CheckState.PAUSED:
            return False
        return _RANK[self.seen] > _RANK.get(self.state, 0)

    @property
    def flap_share(self) -> float:
        """How many of the last 20 observations differed from the one before, as a share of 20."""
        return self.changes.bit_count() / SLOTS

    def is_blind(self, failure_threshold: int) -> bool:
        """Whether so many runs could see nothing that the state is no news any more."""
        return self.blinds >= failure_threshold


def step(now: Standing, status: CheckStatus, *, failure_threshold: int = 3, success_threshold: int = 2) -> Standing:
    """Where a check stands after one more run. A paused check stands still, whatever comes late."""
    if now.state is CheckState.PAUSED or status is CheckStatus.MISSED:
        return now
    if status is CheckStatus.UNKNOWN:
        return replace(now, blinds=min(now.blinds + 1, LONGEST))
    seen = _SEEN[status]
    is_down, is_up = seen is CheckState.DOWN, seen is CheckState.UP
    differs = now.seen is not None and now.seen is not seen
    changes = (now.changes << 1 | differs) & ((1 << SLOTS) - 1)
    counted = replace(
        now,
        seen=seen,
        downs=_counted(now.downs, is_down),
        bads=_counted(now.bads, not is_up),
        goods=_counted(now.goods, is_up),
        betters=_counted(now.betters, not is_down),
        blinds=0,
        changes=changes,
        is_flapping=_is_flapping(changes, now.is_flapping),
    )
    return replace(counted, state=_state(counted, failure_threshold, success_threshold))


def _counted(streak: int, goes_on: bool) -> int:
    return min(streak + 1, LONGEST) if goes_on else 0


def _is_flapping(changes: int, before: bool) -> bool:
    share = changes.bit_count() / SLOTS
    return share >= STEADY_BELOW if before else share > FLAPS_ABOVE


def _state(after: Standing, failures: int, successes: int) -> CheckState:
    """The state, given the streaks of which the newest run is a part."""
    assert after.seen is not None
    if after.state is CheckState.UNKNOWN and after.betters:
        return after.seen
    if after.downs >= failures:
        return CheckState.DOWN
    if after.state is CheckState.UP and after.bads >= failures:
        return CheckState.DEGRADED
    if after.state in (CheckState.DOWN, CheckState.DEGRADED) and after.goods >= successes:
        return CheckState.UP
    if after.state is CheckState.DOWN and after.betters >= successes:
        return CheckState.DEGRADED
    return after.state
