"""Heartbeats: who could not report while the platform was away is not taken for dead at once."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.models import MonitoringCheck
from db.services import check_runs
from tasks.checks import dispatch
from tests.db.services.test_checks import add, claim, load, make_due

__all__ = ["add"]


def away(sql, check: MonitoringCheck, reported: str = "50 s", since: str = "40 s") -> None:
    """The heartbeat reported so long ago, and the platform has done nothing for a while."""
    sql("DELETE FROM ticks WHERE name = 'checks'")
    sql("INSERT INTO ticks (name, last_success_at) VALUES ('checks', now() - %s::interval)", since)
    sql(
        "UPDATE check_states SET state = 'up', beat_since_at = now() - interval '1 h', next_run_at = now() - '5 s'"
        "::interval, beat_at = now() - %s::interval WHERE check_id = %s", reported, check.id,
    )  # fmt: skip


def excuse(session: Session) -> int:
    excused = check_runs.excuse(session)
    session.commit()
    return excused


def test_a_heartbeat_that_could_not_report_while_we_were_away_has_its_grace_anew_and_that_once(session, add, sql):
    backup = add("backup", "heartbeat", {"period_seconds": 30, "grace_seconds": 15})
    away(sql, backup)
    assert excuse(session) == 1
    assert claim(session) == {}, "it is given time to report"
    make_due(session, backup)
    _, (found,) = load(session, claim(session))
    assert found.plan is not None
    assert found.plan.known["since"] > found.plan.known["beat_at"]
    sql("UPDATE check_states SET next_run_at = now(), scheduled_at = NULL, batch_id = NULL")
    assert excuse(session) == 0, "else one whose platform stops every so often would never be missed"


def test_what_was_late_before_or_has_failed_or_could_report_has_no_excuse(session, add, sql):
    backup = add("backup", "heartbeat", {"period_seconds": 30, "grace_seconds": 15})
    never = add("never", "heartbeat", {"period_seconds": 30, "grace_seconds": 15})
    assert excuse(session) == 0, "there was no tick yet"
    away(sql, backup, since="3 s")
    assert excuse(session) == 0, "we were here"
    away(sql, backup, reported="1 s")
    assert excuse(session) == 0, "it has reported since"
    away(sql, backup)
    make_due(session, never)
    for wrong in ("state = 'down'", "state = 'up', beat_failed = true"):
        sql(f"UPDATE check_states SET {wrong} WHERE check_id = %s", backup.id)
        assert excuse(session) == 0, wrong


def test_the_first_tick_after_we_were_away_gives_it(session, add, sql):
    backup = add("backup", "heartbeat", {"period_seconds": 30, "grace_seconds": 15})
    away(sql, backup)
    assert dispatch() == {"excused": 1}
    sql("UPDATE ticks SET last_success_at = now() - interval '3 s' WHERE name = 'checks'")
    assert dispatch() is None
