"""Alerts as the database holds them: what the ticks do, what people do in between, and who wins."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.alerting import Condition
from db.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from db.models import AlertEvent, MonitoringAlert
from db.services import alerts, evaluation, silences
from db.services.evaluation import Observation
from db.states import Severity
from tests.conftest import SCHEMA
from tests.db.services.conftest import one_line

TYPES = frozenset({"test"})


def bad(name: str = "web", **values) -> Condition:
    values = {"severity": Severity.HIGH, "labels": {"check": name}} | values
    return Condition(f"test:{name}", "test", values.pop("severity"), f"{name} is down", **values)


@pytest.fixture
def look(session: Session) -> Callable[..., dict | None]:
    """One tick that sees these conditions, and nothing else of their type."""

    def run(*conditions: Condition, **seen) -> dict | None:
        found = Observation(TYPES, conditions, **seen)
        changed = evaluation.evaluate(session, [lambda *_: found])
        session.commit()
        return changed

    return run


@pytest.fixture
def found(session: Session) -> Callable[[], list[MonitoringAlert]]:
    def run() -> list[MonitoringAlert]:
        session.expire_all()
        return list(session.scalars(select(MonitoringAlert).order_by(MonitoringAlert.id)))

    return run


def timeline(session: Session, alert_id: int = 1) -> list[str]:
    rows = session.scalars(select(AlertEvent).where(AlertEvent.alert_id == alert_id).order_by(AlertEvent.id))
    return [row.kind.value for row in rows]


def older(session: Session, seconds: float) -> None:
    """All that has happened did so this much earlier."""
    columns = ("started_at", "fired_at", "updated_at")
    moved = ", ".join(f"{name} = {name} - interval '{seconds} s'" for name in columns)
    session.execute(text(f"UPDATE {SCHEMA}.monitoring_alerts SET {moved}"))
    session.commit()


def test_what_goes_wrong_is_raised_once_and_resolved_when_it_is_over(session, look, found):
    assert look(bad()) == {"raised": 1}
    assert look(bad()) is None
    assert look() == {"resolved": 1}
    assert look() is None
    (alert,) = found()
    assert (alert.status, alert.cleared_at == alert.resolved_at) == ("resolved", True)
    assert timeline(session) == ["raised", "resolved"]
    assert look(bad()) == {"raised": 1}
    assert [a.status for a in found()] == ["resolved", "firing"]


def test_what_must_last_is_pending_first_and_nothing_where_it_does_not_last(session, look, found):
    assert look(bad(for_seconds=60)) == {"pending": 1}
    assert found()[0].fired_at is None
    assert look() is None
    assert found() == []
    look(bad(for_seconds=60))
    older(session, 61)
    assert look(bad(for_seconds=60)) == {"raised": 1}
    assert timeline(session, found()[0].id) == ["pending", "raised"]


def test_what_could_not_be_looked_at_stays_as_it_is(look, found):
    look(bad("a"), bad("b"))
    assert look(held=frozenset({"test:a"})) == {"resolved": 1}
    assert look(blind=True) is None
    assert [a.status for a in found()] == ["firing", "resolved"]


def test_a_source_that_fails_ends_nothing_and_hides_no_other(session, look, found):
    look(bad())

    def broken(*_):
        session.execute(text("SELECT nonsense"))

    other = Observation(frozenset({"other"}), [Condition("other:x", "other", Severity.LOW, "x")])
    assert evaluation.evaluate(session, [broken, lambda *_: other]) == {"raised": 1}
    session.commit()
    assert [a.status for a in found()] == ["firing", "firing"]


def test_figures_that_move_are_written_rarely_and_a_worse_severity_at_once(session, look, found):
    look(bad(current_value=1, message="1"))
    look(bad(current_value=2, message="2"))
    assert found()[0].current_value == 1
    older(session, 301)
    look(bad(current_value=3, message="3"))
    assert (found()[0].current_value, timeline(session)) == (3, ["raised"])
    look(bad(severity=Severity.CRITICAL))
    assert (found()[0].severity, timeline(session)) == ("critical", ["raised", "changed"])


def test_what_a_person_has_resolved_is_not_raised_again_while_it_goes_on(session, look, found, anna):
    look(bad())
    alerts.resolve(session, alert_id=1, actor=anna)
    session.commit()
    assert look(bad()) is None
    assert look() is None  # it is over
    assert look(bad()) == {"raised": 1}
    assert [(a.status, a.resolved_by_id) for a in found()] == [("resolved", anna.id), ("firing", None)]


def test_during_maintenance_nothing_is_decided_and_at_its_end_what_is_so_then(session, look, found):
    look(bad("before"))
    window = silences.maintain(
        session, title="new disks", matchers={"check": "*"}, ends_at=datetime.now(UTC) + timedelta(hours=1)
    )
    session.commit()
    assert look(bad("during"), bad("passing")) is None  # one is over, others begin
    assert [a.status for a in found()] == ["firing"]
    assert look(bad("during")) is None
    silences.end_maintenance(session, window_id=window.id)
    session.commit()
    assert look(bad("during")) == {"raised": 1, "resolved": 1}
    assert [(a.title, a.status) for a in found()] == [("before is down", "resolved"), ("during is down", "firing")]


def test_it_says_which_deployment_came_shortly_before(session, look, found, asked, run):
    run(asked)
    begun = bad(application_id=asked.application_id, since=asked.started_at + timedelta(seconds=40))
    look(begun)
    (alert,) = found()
    assert alert.deployment_id == asked.id
    (event,) = session.scalars(select(AlertEvent))
    assert event.message == f"it started 40 s after deployment {asked.id} (v1)"
    late = bad("late", application_id=asked.application_id, since=asked.started_at + timedelta(hours=1))
    early = bad("early", application_id=asked.application_id, since=asked.started_at - timedelta(seconds=1))
    look(begun, late, early)
    assert [a.deployment_id for a in found()] == [asked.id, None, None]


def test_only_one_evaluates_at_a_time(session, database, look):
    key = "SELECT pg_advisory_xact_lock(hashtextextended('ops alerts evaluation', 0))"
    with database.connect() as other, other.transaction():
        other.execute(key)
        assert look(bad()) is None
    assert look(bad()) == {"raised": 1}


def test_people_look_after_it_and_the_timeline_says_who_did_what(session, look, found, anna, person):
    look(bad())
    bert = person("bert")
    alerts.acknowledge(session, alert_id=1, actor=anna)
    alerts.assign(session, alert_id=1, user=bert, actor=anna)
    alerts.note(session, alert_id=1, text="the provider works on it", actor=bert)
    alerts.silence(session, alert_id=1, ends_at=datetime.now(UTC) + timedelta(hours=1), comment="known", actor=bert)
    session.commit()
    look()
    assert timeline(session) == ["raised", "acknowledged", "assigned", "note", "silenced", "resolved"]
    (alert,) = found()
    assert (alert.acknowledged_by_id, alert.assigned_to_id) == (anna.id, bert.id)
    look(bad())
    assert found()[1].acknowledged_at is None  # the next time somebody must look anew


def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(session, look, anna, person):
    look(bad())
    viewer = person("vera", role="viewer")
    alerts.acknowledge(session, alert_id=1, actor=anna)
    for kind, act in (
        (Conflict, lambda: alerts.acknowledge(session, alert_id=1, actor=anna)),
        (NotFound, lambda: alerts.acknowledge(session, alert_id=9, actor=anna)),
        (NotFound, lambda: alerts.note(session, alert_id=9, text="x", actor=anna)),
        (InvalidInput, lambda: alerts.note(session, alert_id=1, text="", actor=anna)),
        (InvalidInput, lambda: alerts.note(session, alert_id=1, text="\0", actor=anna)),
        (PermissionDenied, lambda: alerts.assign(session, alert_id=1, user=anna, actor=viewer)),
        (PermissionDenied, lambda: alerts.resolve(session, alert_id=1, actor=viewer)),
        (InvalidInput, lambda: alerts.silence(session, alert_id=1, ends_at=datetime.now(UTC), actor=anna)),
        (InvalidInput, lambda: silences.silence(session, matchers={}, ends_at=datetime(2030, 1, 1, tzinfo=UTC))),
        (
            InvalidInput,
            lambda: silences.silence(session, matchers={"a": "b"}, ends_at=datetime(2100, 1, 1, tzinfo=UTC)),
        ),
        (NotFound, lambda: silences.end_silence(session, silence_id=9)),
    ):
        with pytest.raises(kind) as error:
            act()
        one_line(error)
    assert timeline(session) == ["raised", "acknowledged"]


def test_each_move_is_in_the_audit_trail_and_how_far_the_ticks_have_come_is_not(session, look, sql):
    look(bad())
    look()
    rows = sql("SELECT action FROM audit_logs WHERE resource_type = 'alert' ORDER BY id")
    assert rows == [("alert.created",), ("alert.updated",)]
    sql("UPDATE monitoring_alerts SET settled_at = now()")
    assert sql("SELECT count(*) FROM audit_logs WHERE resource_type = 'alert'") == [(2,)]
