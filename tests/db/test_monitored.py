"""The machines of checks and alerts together, against the model: without a database, in ten thousand histories."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta

import pytest
from hypothesis import given, settings

from db.alerting import Route
from db.checkstates import Standing, step
from db.models import CheckInterval
from db.services.outages import OVERLAP, spells
from db.states import AlertStatus, CheckState, CheckStatus, Severity
from tests.db.monitored import CHECKS, FAILURES, SUCCESSES, check, happenings
from tests.db.test_alerting import START, Store, at, seen

ROUTES = [Route(1, 1, Severity.LOW, repeat=timedelta())]


class One:
    """One check, its intervals, its alerts."""

    def __init__(self) -> None:
        self.standing, self.flight, self.store = Standing(), 0, Store()
        self.intervals = [CheckInterval(id=1, state=CheckState.UNKNOWN, started_at=START)]
        self.looked_at: float | None = None

    def known(self) -> CheckState:
        return CheckState.UNKNOWN if self.standing.is_blind(FAILURES) else self.standing.state

    def record(self, token: int, status: str, now: float) -> None:
        if token != self.flight:
            return
        self.flight, before = 0, self.known()
        self.standing = step(
            self.standing, CheckStatus(status), failure_threshold=FAILURES, success_threshold=SUCCESSES
        )
        if self.known() is not before:
            last = self.intervals[-1]
            last.ended_at = max(last.started_at, at(now))
            self.intervals.append(CheckInterval(id=last.id + 1, state=self.known(), started_at=last.ended_at))

    def look(self, now: float) -> None:
        """As `outages.observe` and `evaluation` do it."""
        alert = self.store.newest()
        first = int(alert.episode) if alert else None
        found = spells([each for each in self.intervals if each.id >= (first or 0)], first)
        since = None if self.looked_at is None else at(self.looked_at) - OVERLAP
        self.looked_at = now
        if alert is not None and self.standing.is_flapping:
            return
        for spell in found:
            over = seen(str(spell.interval_id), since=spell.started_at, is_new_alert=True)
            if spell.ended_at is not None and since is not None and spell.ended_at > since:
                self.make_up_for(over, now)
        going = [spell for spell in found if spell.ended_at is None]
        self.store.evaluate(
            seen(str(going[0].interval_id), since=going[0].started_at, is_new_alert=True) if going else None, now
        )

    def make_up_for(self, over, now: float) -> None:
        if any(each.episode == over.episode for each in self.store.alerts):
            return
        self.store.evaluate(None, now)
        self.store.evaluate(over, now)
        self.store.evaluate(None, now)


class Pure:
    """The checks in memory; what is cut off happens to a copy."""

    def __init__(self) -> None:
        self.now, self.token = 0.0, 0
        self.checks = [One() for _ in range(CHECKS)]

    def claim(self) -> int:
        self.now, self.token = self.now + 5, self.token + 1
        for each in self.checks:
            each.flight = self.token
        return self.token

    def record(self, claimed: int, seen: list[str]) -> None:
        self.now += 1
        for each, status in zip(self.checks, seen, strict=True):
            each.record(claimed, status, self.now)

    def look(self, *, cut: bool = False) -> None:
        for each in self.checks:
            (deepcopy(each) if cut else each).look(self.now)

    def dispatch(self, *, cut: bool = False) -> None:
        for each in self.checks:
            (deepcopy(each) if cut else each).store.dispatch(self.now, ROUTES, silenced=False)

    def restart(self) -> None:
        pass  # nothing is remembered between two steps

    def jump(self, seconds: int) -> None:
        self.now += seconds

    def alerts(self, check: int) -> list[bool]:
        return [each.status is AlertStatus.FIRING for each in self.checks[check].store.alerts]

    def told(self, check: int) -> list[tuple[int, str]]:
        return [(each.alert_id - 1, each.transition.value) for each in self.checks[check].store.notices]


@settings(max_examples=100)
@given(happenings)
def test_checks_and_alerts_together_are_the_truth(history):
    check(Pure(), history)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=10_000)
@given(happenings)
def test_the_same_in_ten_thousand_histories(history):
    check(Pure(), history)
