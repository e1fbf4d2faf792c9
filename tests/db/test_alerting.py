"""The alert machine against a slow reference model: no transition missed, none invented, nothing told twice.

The model knows the truth second by second. The machine only looks now and then; its looks are lost, doubled, cut off in
the middle and begun anew, and people act in between.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.alerting import Condition, Known, Notice, Route, Step, Telling, Told, decide, matches, plan
from db.states import AlertStatus, Severity, Transition

START = datetime(2026, 11, 25, tzinfo=UTC)
FIRING, RESOLVED, PENDING = AlertStatus.FIRING, AlertStatus.RESOLVED, AlertStatus.PENDING
R = Transition


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def seen(episode: str = "1", **values) -> Condition:
    return Condition("f", "test", Severity.HIGH, "it is wrong", episode=episode, **values)


def known(status=FIRING, episode: str = "1", second: float = 0, **values) -> Known:
    return Known(1, status, episode, at(second), Severity.HIGH, "it is wrong", **values)


# One step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "steps"),
    [
        (None, None, ()),
        (None, seen(), (Step.RAISE,)),
        (None, seen(for_seconds=60, since=at(0)), (Step.BEGIN,)),
        (None, seen(for_seconds=60, since=at(-60)), (Step.RAISE,)),
        (known(), seen(), ()),
        (known(), None, (Step.RESOLVE,)),
        (known(PENDING), None, (Step.WITHDRAW,)),
        (known(PENDING), seen(for_seconds=60), ()),
        (known(PENDING, second=-60), seen(for_seconds=60), (Step.FIRE,)),
        (known(RESOLVED), seen(), ()),  # by hand, while it went on
        (known(RESOLVED), None, (Step.CLEAR,)),
        (known(RESOLVED), seen("2"), (Step.CLEAR, Step.RAISE)),
        (known(), seen("2"), (Step.CHANGE,)),
        (known(), seen("2", is_new_alert=True), (Step.RESOLVE, Step.RAISE)),
        (known(PENDING), seen("2", is_new_alert=True), (Step.WITHDRAW, Step.RAISE)),
        (known(message="a", written_at=at(0)), seen(message="b"), ()),  # figures move, and leave no entry each
        (known(message="a", written_at=at(-301)), seen(message="b"), (Step.CHANGE,)),
    ],
)
def test_what_follows_from_what_is_seen(before, now, steps):
    assert decide(before, now, at(0)) == steps


@pytest.mark.parametrize(
    ("matchers", "labels", "fits"),
    [
        ({}, {}, True),
        ({"check": "web"}, {"check": "web", "more": "x"}, True),
        ({"check": "web*"}, {"check": "web-1"}, True),
        ({"check": "web"}, {"check": "WEB"}, False),
        ({"check": "*"}, {}, False),
        ({"check": "web", "host": "a"}, {"check": "web"}, False),
        ({"check": "web[*]"}, {"check": "web*"}, True),
        ({"check": "web[*]"}, {"check": "web-1"}, False),
    ],
)
def test_all_matchers_must_fit(matchers, labels, fits):
    assert matches(matchers, labels) is fits


ROUTE = Route(1, 7, wait=timedelta(seconds=30), repeat=timedelta(hours=4), group_by=("check",))


def tell(status=FIRING, last: Told | None = None, second: float = 0, route: Route = ROUTE, **values) -> list[str]:
    alert = Telling(1, status, Severity.HIGH, {"check": "web"}, **values)
    notices = plan(alert, [route], {} if last is None else {7: last}, at(second))
    assert all(each.group_key == "1|check=web" for each in notices)
    return [f"{each.transition.value} {each.sequence}" for each in notices]


def test_an_alert_is_told_of_and_its_end_and_it_is_repeated_while_nobody_looks_after_it():
    raised, repeated = Told(R.RAISED, 0, at(0)), Told(R.REPEATED, 1, at(14400))
    assert tell() == ["raised 0"]
    assert tell(last=raised, second=14399) == []
    assert tell(last=raised, second=14400) == ["repeated 1"]
    assert tell(last=repeated, second=28800) == ["repeated 2"]
    assert tell(last=repeated, second=28800, is_acknowledged=True) == []
    assert tell(last=repeated, second=28800, is_silenced=True) == []
    assert tell(last=raised, second=99999, route=Route(1, 7, group_by=("check",), repeat=timedelta())) == []
    assert tell(RESOLVED, last=repeated) == ["resolved 0"]
    assert tell(RESOLVED, last=Told(R.RESOLVED, 0, at(0)), second=99999) == []


def test_one_that_came_and_went_between_two_looks_is_told_of_whole():
    assert tell(RESOLVED) == ["raised 0", "resolved 0"]


def test_a_silenced_one_is_not_told_of_but_the_end_of_what_was_told_is():
    assert tell(is_silenced=True) == []
    assert tell(RESOLVED, is_silenced=True) == []
    assert tell(RESOLVED, last=Told(R.RAISED, 0, at(0)), is_silenced=True) == ["resolved 0"]


def test_a_channel_is_told_once_whatever_the_number_of_its_routes_and_of_the_end_although_they_are_gone():
    alert = Telling(1, FIRING, Severity.MEDIUM, {})
    routes = [Route(1, 7, Severity.HIGH), Route(2, 7), Route(3, 7), Route(4, 8, matchers={"check": "x"})]
    assert [(n.channel_id, n.group_key) for n in plan(alert, routes, {}, at(0))] == [(7, "2")]
    over = Telling(1, RESOLVED, Severity.MEDIUM, {})
    told = {7: Told(R.RAISED, 0, at(0)), 9: Told(R.RESOLVED, 0, at(0))}
    assert [(n.channel_id, n.transition) for n in plan(over, [], told, at(0))] == [(7, R.RESOLVED)]


# Whole histories --------------------------------------------------------------------------------------------------


@dataclass
class Alert:
    id: int
    status: AlertStatus
    episode: str
    started: float
    fired: float | None = None
    resolved: float | None = None
    by_hand: bool = False
    cleared: bool = False
    settled: bool = False


@dataclass
class Store:
    """What the database holds, in memory; its uniqueness and its compare-and-sets are the real ones."""

    alerts: list[Alert] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    told_at: list[datetime] = field(default_factory=list)

    def copy(self) -> Store:
        return Store([Alert(**vars(a)) for a in self.alerts], list(self.notices), list(self.told_at))

    def newest(self) -> Alert | None:
        return next((a for a in reversed(self.alerts) if not a.cleared), None)

    def evaluate(self, condition: Condition | None, second: float) -> None:
        alert = self.newest()
        before = (
            Known(alert.id, alert.status, alert.episode, at(alert.started), Severity.HIGH, "it is wrong")
            if alert
            else None
        )
        for step in decide(before, condition, at(second)):
            self._apply(step, alert, condition, second)

    def _apply(self, step: Step, alert: Alert | None, condition: Condition | None, second: float) -> None:
        if step in (Step.BEGIN, Step.RAISE):
            if any(a.status is not RESOLVED for a in self.alerts):
                return  # the unique index
            since = (condition.since - START).total_seconds()
            fired = second if step is Step.RAISE else None
            status = FIRING if fired is not None else PENDING
            self.alerts.append(Alert(len(self.alerts) + 1, status, condition.episode, since, fired))
        elif step is Step.FIRE and alert.status is PENDING:
            alert.status, alert.fired = FIRING, second
        elif step is Step.WITHDRAW and alert.status is PENDING:
            alert.status, alert.cleared, alert.settled = RESOLVED, True, True
        elif step is Step.RESOLVE and alert.status is FIRING:
            alert.status, alert.resolved, alert.cleared = RESOLVED, second, True
        elif step is Step.CLEAR:
            alert.cleared = True

    def dispatch(self, second: float, routes: list[Route], *, silenced: bool) -> None:
        for alert in self.alerts:
            if alert.settled or alert.status is PENDING:
                continue
            told: dict[int, Told] = {}
            for notice, when in zip(self.notices, self.told_at, strict=True):
                if notice.alert_id == alert.id:
                    told[notice.channel_id] = Told(notice.transition, notice.sequence, when)
            telling = Telling(alert.id, alert.status, Severity.HIGH, {}, is_silenced=silenced)
            for notice in plan(telling, routes, told, at(second)):
                key = (notice.alert_id, notice.transition, notice.sequence, notice.channel_id)
                if key not in {(n.alert_id, n.transition, n.sequence, n.channel_id) for n in self.notices}:
                    self.notices.append(notice)
                    self.told_at.append(at(second))
            if alert.status is RESOLVED:
                alert.settled = True


#: A history: how long the thing is well and bad by turns, and what happens at which second.
spans = st.lists(st.integers(1, 120), min_size=1, max_size=8)
events = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from(("look", "look", "look", "twice", "cut", "late", "blind", "resolve", "dispatch", "maintain")),
    ),
    min_size=1,
    max_size=40,
)  # fmt: skip
ROUTES = [Route(1, 1, repeat=timedelta()), Route(2, 2, Severity.MEDIUM, repeat=timedelta())]


def truth(spans: list[int]) -> list[tuple[int, int]]:
    """When it was bad: (from, until)."""
    found, second = [], 0
    for n, length in enumerate(spans):
        if n % 2:
            found.append((second, second + length))
        second += length
    return found


def condition_at(bad: list[tuple[int, int]], second: float, lasting: float) -> Condition | None:
    """What a source would say at a second."""
    for start, end in bad:
        if start <= second < end:
            return seen(str(start), since=at(start), for_seconds=lasting, is_new_alert=True)
    return None


def run(spans: list[int], events: list[tuple[int, str]], lasting: float) -> tuple[Store, dict[str, list]]:
    """Play a history; answers the store at its end, and what the model expects: one alert for each bad time that was
    looked at when it had lasted long enough."""
    bad, store, expected, seen_at = truth(spans), Store(), [], []
    maintained = False
    for second, what in sorted(events, key=lambda event: event[0]):
        now = condition_at(bad, second, lasting)
        if what == "blind" or (maintained and what in ("look", "twice", "cut", "late")):
            continue
        if what == "maintain":
            maintained = not maintained
        elif what == "resolve":
            for alert in store.alerts:
                if alert.status is FIRING:
                    alert.status, alert.resolved, alert.by_hand = RESOLVED, second, True
        elif what == "dispatch":
            store.dispatch(second, ROUTES, silenced=False)
        elif what == "cut":  # the transaction is rolled back
            store.copy().evaluate(now, second)
            store.copy().dispatch(second, ROUTES, silenced=False)
        else:
            for _ in range(2 if what == "twice" else 1):
                store.evaluate(now, second)
            if now is not None and second - int(now.episode) >= lasting and int(now.episode) not in expected:
                expected.append(int(now.episode))
            seen_at.append((second, now.episode if now else None))
            if what == "late":  # a dispatch that was made for an earlier second comes now
                store.dispatch(second, ROUTES, silenced=False)
    return store, {"expected": expected, "looks": seen_at}


def check(spans: list[int], events: list[tuple[int, str]], lasting: float) -> None:
    store, model = run(spans, events, lasting)
    fired = [alert for alert in store.alerts if alert.fired is not None]
    # None missed, none invented, none twice: one firing alert for each bad time that was seen to last.
    assert [int(alert.episode) for alert in fired] == model["expected"]
    # Open exactly when the newest look saw it bad, unless a person has closed it.
    open_ = [alert.episode for alert in store.alerts if alert.status is not RESOLVED]
    last = model["looks"][-1][1] if model["looks"] else None
    assert open_ in ([], [last])
    if last is not None and not open_:
        assert any(alert.episode == last and alert.by_hand for alert in store.alerts)
    # Told once each, in order, and of no end whose beginning was not told.
    for _ in range(2):
        store.dispatch(1000, ROUTES, silenced=False)
    counts = Counter((n.alert_id, n.channel_id, n.transition) for n in store.notices)
    assert set(counts.values()) <= {1}
    for alert in fired:
        wanted = [R.RAISED] if alert.status is FIRING else [R.RAISED, R.RESOLVED]
        for channel in (1, 2):
            told = [n.transition for n in store.notices if (n.alert_id, n.channel_id) == (alert.id, channel)]
            assert told == wanted
    assert {n.alert_id for n in store.notices} == {alert.id for alert in fired}


lasting = st.sampled_from((0, 0, 10, 60))


@settings(max_examples=200)
@given(spans, events, lasting)
def test_no_transition_is_missed_or_invented_and_nothing_is_told_twice(spans, events, lasting):
    check(spans, events, lasting)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=10_000)
@given(spans, events, lasting)
def test_the_same_in_ten_thousand_histories(spans, events, lasting):
    check(spans, events, lasting)
