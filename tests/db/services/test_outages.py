"""Checks that go down and come back, also between two looks, and what nobody could see: told once, and truly."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.models import CheckInterval, CheckStanding, MonitoringAlert, MonitoringCheck, User
from db.repositories import CheckRepository, TickRepository
from db.repositories.outages import OutageRepository
from db.services import checks, evaluation, outages, silences, users
from db.services.outages import Spell, spells
from db.states import CheckState
from tests.conftest import SCHEMA
from tests.db.test_lists import read, statements

UP, DOWN, DEGRADED, UNKNOWN, PAUSED = (
    CheckState.UP, CheckState.DOWN, CheckState.DEGRADED, CheckState.UNKNOWN, CheckState.PAUSED,
)  # fmt: skip


def intervals(*states: CheckState) -> list[CheckInterval]:
    start = datetime(2026, 11, 25, tzinfo=UTC)
    return [
        CheckInterval(id=n, state=state, started_at=start + timedelta(minutes=n)) for n, state in enumerate(states, 1)
    ]


@pytest.mark.parametrize(
    ("states", "found"),
    [
        ([], []),
        ([UP], []),
        ([UNKNOWN, DOWN], [(2, True)]),
        ([DOWN, UP, DOWN, DEGRADED, UP], [(1, False), (3, False)]),
        ([UP, DOWN, UNKNOWN, DOWN, UP], [(2, False)]),
        ([DOWN, PAUSED, UNKNOWN, DOWN], [(1, True)]),
        ([DEGRADED, DOWN, UNKNOWN], [(2, True)]),
    ],
)
def test_a_time_at_which_nothing_could_be_seen_ends_no_spell(states, found):
    assert [(spell.interval_id, spell.ended_at is None) for spell in spells(intervals(*states))] == found


def test_a_spell_keeps_its_name_where_its_beginning_is_not_looked_at_any_more():
    assert [spell.interval_id for spell in spells(intervals(DOWN, UP, DOWN), first=77)] == [77, 3]
    assert [spell.interval_id for spell in spells(intervals(UP, DOWN), first=77)] == [2]
    assert isinstance(spells(intervals(DOWN))[0], Spell)


Turn = Callable[..., None]


def turn(session: Session, check: MonitoringCheck, state: CheckState, **standing: Any) -> None:
    """The check's state changes, as its runs write it."""
    session.execute(
        update(CheckStanding)
        .where(CheckStanding.check_id == check.id)
        .values(state=state, since_at=text("clock_timestamp()"), **standing)
    )
    CheckRepository(session).move_intervals({check.id: state})
    session.commit()


@pytest.fixture
def site(session: Session, anna: User) -> MonitoringCheck:
    made = checks.add(
        session, owner_id=anna.id, name="site", kind="http", config={"url": "http://example.org/"},
        labels={"team": "web"},
    )  # fmt: skip
    session.commit()
    return made


def look(session: Session) -> dict[str, Any] | None:
    """The tick."""
    TickRepository(session).due("alerts", timedelta(0))
    changed = evaluation.evaluate(session, [outages.observe])
    TickRepository(session).done("alerts", changed)
    session.commit()
    return changed


def alerts(session: Session) -> list[str]:
    session.expire_all()
    rows = session.scalars(select(MonitoringAlert).order_by(MonitoringAlert.id))
    return [f"{row.alert_type} {row.status.value}" for row in rows]


def test_a_check_that_is_down_raises_an_alert_and_its_way_up_resolves_it(session, site):
    turn(session, site, UP)
    assert look(session) is None
    turn(session, site, DOWN, last_message="connection refused")
    assert look(session) == {"raised": 1}
    assert look(session) is None
    (alert,) = session.scalars(select(MonitoringAlert))
    assert (alert.title, alert.message, alert.severity.value) == ("site is down", "connection refused", "high")
    assert alert.labels == {"check": "site", "kind": "http", "team": "web"}
    turn(session, site, UP)
    assert look(session) == {"resolved": 1}
    assert look(session) is None


def test_a_time_that_began_and_ended_between_two_looks_is_told_of_once(session, site):
    turn(session, site, UP)
    look(session)
    for state in (DOWN, UP, DOWN, UP):
        turn(session, site, state)
    assert look(session) == {"raised": 2, "resolved": 2}
    assert look(session) is None
    turn(session, site, DOWN)
    assert look(session) == {"raised": 1}
    for state in (UP, DOWN, UP, DOWN):  # three times, of which the first was known
        turn(session, site, state)
    assert look(session) == {"raised": 2, "resolved": 2}
    assert look(session) is None
    assert alerts(session)[-3:] == ["check_down resolved", "check_down resolved", "check_down firing"]


def test_before_the_first_look_nothing_is_made_up_for(session, site):
    for state in (DOWN, UP):
        turn(session, site, state)
    assert look(session) is None


def test_what_could_not_be_seen_ends_no_alert_and_has_one_of_its_own(session, site):
    turn(session, site, DOWN)
    look(session)
    blind = {"blinds": 3, "blind_at": text("clock_timestamp()"), "last_message": "no resolver"}
    session.execute(update(CheckStanding).values(**blind))
    CheckRepository(session).move_intervals({site.id: UNKNOWN})
    session.commit()
    assert look(session) == {"raised": 1}
    assert alerts(session) == ["check_down firing", "check_blind firing"]
    turn(session, site, DOWN, blinds=0, blind_at=None)
    assert look(session) == {"resolved": 1}
    assert alerts(session) == ["check_down firing", "check_blind resolved"]


def test_a_pause_and_an_edit_end_no_alert(session, site):
    turn(session, site, DOWN)
    look(session)
    found = checks.pause(session, found=site)
    session.commit()
    assert look(session) is None
    checks.resume(session, found=found)
    session.commit()
    assert look(session) is None
    turn(session, site, UP)
    assert look(session) == {"resolved": 1}


def test_what_flaps_is_not_told_of_at_each_turn(session, site):
    turn(session, site, DOWN, is_flapping=True)
    assert look(session) == {"raised": 1}
    for state in (UP, DOWN, UP):
        turn(session, site, state)
        assert look(session) is None
    turn(session, site, UP, is_flapping=False)
    assert look(session)["resolved"] >= 1
    assert "check_down firing" not in alerts(session)


def test_degraded_is_an_alert_of_its_own_and_milder(session, site):
    turn(session, site, DEGRADED)
    assert look(session) == {"raised": 1}
    turn(session, site, DOWN)
    assert look(session) == {"raised": 1, "resolved": 1}
    assert alerts(session) == ["check_degraded resolved", "check_down firing"]
    severities = session.scalars(select(MonitoringAlert.severity).order_by(MonitoringAlert.id))
    assert [severity.value for severity in severities] == ["medium", "high"]


def test_a_removed_check_leaves_no_open_alert(session, site):
    turn(session, site, DOWN)
    look(session)
    checks.remove(session, found=site)
    session.commit()
    assert look(session) == {"resolved": 1}


def test_what_was_down_during_maintenance_and_is_up_at_its_end_is_not_told_of(session, site):
    turn(session, site, UP)
    look(session)
    window = silences.maintain(
        session, title="disks", matchers={"check": "site"}, ends_at=datetime.now(UTC) + timedelta(hours=1)
    )
    session.commit()
    turn(session, site, DOWN)
    assert look(session) is None
    turn(session, site, UP)
    silences.end_maintenance(session, window_id=window.id)
    session.commit()
    assert look(session) is None
    turn(session, site, DOWN)
    assert look(session) == {"raised": 1}


def test_the_tick_reads_what_is_wrong_and_not_the_standing_of_every_check(database, session):
    with database.connect("postgres") as root:
        root.execute("SET session_replication_role = replica")
        root.execute(
            """INSERT INTO monitoring_checks (name, kind, config, owner_id)
            SELECT 'c' || n, 'http', '{"url": "http://example.org/"}', 1 FROM generate_series(1, 20000) n"""
        )
        root.execute(
            """INSERT INTO check_states (check_id, next_run_at, state, blinds, blind_at)
            SELECT id, now(), CASE WHEN id % 1000 = 1 THEN 'down' ELSE 'up' END, (id % 1000 = 2)::int,
              CASE WHEN id % 1000 = 2 THEN now() END FROM monitoring_checks"""
        )
        root.execute("ANALYZE monitoring_checks, check_states")
    with statements() as sent:
        found = OutageRepository(session).standings([3, 4])
        assert len(found) == 42
    ((statement, parameters),) = sent
    with database.connect("postgres") as root:
        (plan,) = root.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).fetchone()
    assert read(plan[0]["Plan"]) <= 200, plan[0]["Plan"]


steps = st.lists(
    st.sampled_from(("up", "down", "degraded", "unknown", "look", "look", "again", "cut")), min_size=1, max_size=25
)  # fmt: skip


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_alerts_are_the_times_at_which_it_was_down(database, steps):
    check_history(steps)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_same_in_many_histories(database, steps):
    check_history(steps)


def check_history(steps: list[str]) -> None:
    """Play it on the database, and compare with the plain truth: the times at which it was down, once known."""
    with get_db_session() as session:
        for table in ("ticks", "monitoring_alerts", "monitoring_checks"):
            session.execute(text(f"DELETE FROM {SCHEMA}.{table}"))
        owner = session.scalars(select(User)).first() or users.create(session, username="o", email="o@example.org")
        made = checks.add(session, owner_id=owner.id, name="site", kind="http", config={"url": "http://example.org/"})
    truth: list[bool] = []  # of each time at which it was down: whether it goes on
    with get_db_session() as session:
        look(session)
    for step in steps:
        with get_db_session() as session:
            if step in ("look", "again"):
                look(session)
                if step == "again":
                    look(session)
            elif step == "cut":
                evaluation.evaluate(session, [outages.observe])
                session.rollback()
            elif step == "unknown":
                CheckRepository(session).move_intervals({made.id: UNKNOWN})
            else:
                turn(session, made, CheckState(step))
                if step == "down" and not (truth and truth[-1]):
                    truth.append(True)
                elif step in ("up", "degraded") and truth:
                    truth[-1] = False
    with get_db_session() as session:
        look(session)
        look(session)
        rows = session.scalars(
            select(MonitoringAlert).where(MonitoringAlert.alert_type == "check_down").order_by(MonitoringAlert.id)
        ).all()
        assert [row.status.value == "firing" for row in rows] == truth
        assert all(a.started_at < b.started_at for a, b in pairwise(rows))
