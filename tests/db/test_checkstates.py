"""The rules by which a check's state follows from what was seen, against a slow model that knows the whole history."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.checkstates import SLOTS, Standing, step
from db.states import CheckState, CheckStatus

UP, DEGRADED, DOWN, UNKNOWN, MISSED = CheckStatus
RANK = {"up": 0, "degraded": 1, "down": 2}


def after(*seen: CheckStatus, start: Standing | None = None, failures: int = 3, successes: int = 2) -> Standing:
    standing = start or Standing()
    for status in seen:
        standing = step(standing, status, failure_threshold=failures, success_threshold=successes)
    return standing


def test_one_good_run_makes_a_new_check_up_and_three_bad_ones_make_it_down():
    assert after(UP).state is CheckState.UP
    assert after(DEGRADED).state is CheckState.DEGRADED
    assert [after(*[DOWN] * n).state for n in (1, 2, 3)] == [CheckState.UNKNOWN] * 2 + [CheckState.DOWN]


def test_two_failures_are_not_confirmed_and_three_are():
    assert [after(UP, *[DOWN] * n).state for n in (1, 2, 3)] == [CheckState.UP, CheckState.UP, CheckState.DOWN]
    assert [after(UP, *[DOWN] * n).is_failing_softly for n in (0, 1, 2, 3)] == [False, True, True, False]


def test_one_good_run_in_between_starts_the_count_anew():
    assert after(UP, DOWN, DOWN, UP, DOWN, DOWN).state is CheckState.UP


def test_recovery_needs_two_good_runs():
    assert after(UP, DOWN, DOWN, DOWN, UP).state is CheckState.DOWN
    assert after(UP, DOWN, DOWN, DOWN, UP, UP).state is CheckState.UP


def test_down_and_degraded_by_turns_is_at_least_degraded():
    assert after(UP, DOWN, DEGRADED, DOWN).state is CheckState.DEGRADED


def test_what_could_not_run_moves_nothing_but_its_own_count():
    failing = after(UP, DOWN, DOWN)
    blind = after(UNKNOWN, UNKNOWN, start=failing)
    assert (blind.state, blind.downs, blind.changes, blind.blinds) == (CheckState.UP, 2, failing.changes, 2)
    assert after(DOWN, start=blind).state is CheckState.DOWN
    assert not blind.is_blind(3)
    assert after(UNKNOWN, start=blind).is_blind(3)
    assert not after(UP, start=after(*[UNKNOWN] * 5)).is_blind(3)


def test_missed_runs_change_nothing_and_a_paused_check_stands_still():
    standing = after(UP, DOWN)
    assert after(MISSED, start=standing) == standing
    paused = Standing(CheckState.PAUSED)
    assert after(UP, DOWN, UNKNOWN, start=paused) == paused


def test_flapping_starts_above_thirty_percent_and_stops_below_twenty_five():
    flapping = after(*[UP, DOWN] * 3, UP)
    assert (flapping.changes.bit_count(), flapping.is_flapping) == (6, False)
    flapping = after(DOWN, start=flapping)
    assert (flapping.changes.bit_count(), flapping.is_flapping) == (7, True)
    calm = flapping
    for _ in range(SLOTS):
        before, calm = calm, after(DOWN, start=calm)
        assert calm.is_flapping is (calm.changes.bit_count() >= 5)
        assert before.is_flapping or not calm.is_flapping
    assert not calm.is_flapping


class Model:
    """Knows everything that was seen, and counts it anew each time."""

    def __init__(self, failures: int, successes: int) -> None:
        self.failures, self.successes = failures, successes
        self.state, self.seen, self.blinds, self.is_flapping = "unknown", [], 0, False

    def run(self, status: str) -> None:
        if status == "missed":
            return
        if status == "unknown":
            self.blinds += 1
            return
        self.blinds = 0
        self.seen.append(status)
        self.state = self._state(status)
        pairs = list(zip(self.seen, self.seen[1:], strict=False))[-20:]
        flips = sum(a != b for a, b in pairs)
        self.is_flapping = flips >= 5 if self.is_flapping else flips > 6

    def _last(self, count: int, *among: str) -> bool:
        return len(self.seen) >= count and all(each in among for each in self.seen[-count:])

    def _state(self, status: str) -> str:
        if self.state == "unknown" and status != "down":
            return status
        if self._last(self.failures, "down"):
            return "down"
        if self.state == "up" and self._last(self.failures, "down", "degraded"):
            return "degraded"
        if self.state in ("down", "degraded") and self._last(self.successes, "up"):
            return "up"
        if self.state == "down" and self._last(self.successes, "up", "degraded"):
            return "degraded"
        return self.state


HISTORIES = st.lists(st.sampled_from([UP, UP, UP, DEGRADED, DOWN, DOWN, UNKNOWN, MISSED]), max_size=120)


def agree(history: list[CheckStatus], failures: int, successes: int) -> None:
    model, standing = Model(failures, successes), Standing()
    for status in history:
        before = standing
        model.run(status.value)
        standing = step(standing, status, failure_threshold=failures, success_threshold=successes)
        assert (standing.state.value, standing.blinds, standing.is_flapping) == (
            model.state, model.blinds, model.is_flapping,
        )  # fmt: skip
        if standing.state is not before.state and before.state.value in RANK:
            worse = RANK[standing.state.value] > RANK[before.state.value]
            needed = failures if worse else successes
            known = [each for each in model.seen[-needed:] if (RANK[each] > RANK[before.state.value]) is worse]
            assert len(known) == needed, "a state changed without enough runs of one mind"


@settings(max_examples=200)
@given(HISTORIES, st.integers(1, 5), st.integers(1, 5))
def test_the_machine_agrees_with_the_model(history, failures, successes):
    agree(history, failures, successes)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(HISTORIES, st.integers(1, 5), st.integers(1, 5))
def test_the_machine_agrees_with_the_model_over_ten_thousand_histories(history, failures, successes):
    agree(history, failures, successes)
