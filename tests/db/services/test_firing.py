"""Each time of each schedule is fired once, whoever fires, and whatever goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.models import Deployment, Job, Schedule, ScheduleRun, User
from db.services import firing, schedules, users
from tasks import schedules as tick

NOW = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
TASK = {"name": "shop.report", "queue": "shop"}
DEPLOY = {"application": "shop", "infrastructure": "here", "version": "v1"}

Make = Callable[..., Schedule]


@pytest.fixture
def make(session: Session, anna: User) -> Make:
    """A schedule of anna's, each hour from NOW on."""

    def register(name: str = "hourly", **values: Any) -> Schedule:
        values = {"every": "1h", "task": TASK} | values
        made = schedules.register(session, user_id=anna.id, now=NOW, name=name, **values)
        session.commit()
        return made

    return register


@pytest.fixture
def fire(session: Session) -> Callable[[datetime], list[tuple[str, str | None]]]:
    """Fire all that is due at a time; the outcome and reason of each, once each schedule is up to date."""

    def at(now: datetime) -> list[tuple[str, str | None]]:
        found: list[tuple[str, str | None]] = []
        session.expire_all()
        while (fired := firing.fire_next(session, now=now)) is not None:
            session.commit()
            found.append((fired.outcome.value, fired.reason))
        session.rollback()
        session.expire_all()
        return found

    return at


@pytest.fixture
def history(session: Session) -> Callable[[], list[tuple[datetime, str, str | None]]]:
    def look() -> list[tuple[datetime, str, str | None]]:
        rows = session.scalars(select(ScheduleRun).order_by(ScheduleRun.fire_at))
        return [(run.fire_at, run.outcome.value, run.reason) for run in rows]

    return look


def end_jobs(sql, state: str = "succeeded") -> None:
    outcome = {"succeeded": "ok", "failed": "failed", "cancelled": "cancelled"}[state]
    sql(
        "UPDATE jobs SET state = %s, outcome = %s, error = 'e', finished_at = now() WHERE state = 'queued'",
        state, outcome,
    )  # fmt: skip


def test_what_is_due_is_enqueued_once_and_has_a_next_time(session, make, fire, history, anna):
    made = make()
    edited = made.updated_at
    assert fire(NOW + HOUR - timedelta(seconds=1)) == []
    assert fire(NOW + HOUR) == [("enqueued", None)]
    assert fire(NOW + HOUR + timedelta(seconds=5)) == []
    assert history() == [(NOW + HOUR, "enqueued", None)]
    job = session.scalars(select(Job)).one()
    assert (job.task, job.queue, job.lock_key) == ("shop.report", "shop", f"schedule:{made.id}")
    assert job.context == {
        "actor": "schedule hourly",
        "actor_type": "beat",
        "actor_id": anna.id,
        "client": job.context["client"],
    }
    assert (made.next_run_at, made.last_fired_at) == (NOW + 2 * HOUR, NOW + HOUR)
    assert made.updated_at == edited, "that it fires is no edit"


def test_a_deployment_is_its_users_and_the_trail_says_that_nobody_asked(session, make, fire, shop, here, anna, sql):
    make(task=None, deploy=DEPLOY)
    assert fire(NOW + HOUR) == [("enqueued", None)]
    deployment = session.scalars(select(Deployment)).one()
    assert (deployment.user_id, deployment.version, deployment.status) == (anna.id, "v1", "pending")
    assert session.scalars(select(ScheduleRun)).one().deployment_id == deployment.id
    assert sql(
        """SELECT DISTINCT actor, actor_type, actor_id FROM audit_logs
        WHERE resource_type IN ('deployment', 'job', 'schedule_run')"""
    ) == [("schedule hourly", "beat", anna.id)]


def test_once_fires_once_and_is_over(make, fire, history):
    made = make(every=None, once="2026-10-24T13:00")
    assert fire(NOW + HOUR) == [("enqueued", None)]
    assert (made.next_run_at, made.last_fired_at) == (None, NOW + HOUR)
    assert fire(NOW + 9 * HOUR) == []


def test_while_a_run_is_not_over_the_next_one_is_skipped_and_says_why(make, fire, sql):
    make()
    fire(NOW + HOUR)
    assert fire(NOW + 2 * HOUR) == [("skipped", "its run of 2026-10-24 13:00:00 UTC is not over")]
    assert fire(NOW + 3 * HOUR) == [("skipped", "its run of 2026-10-24 13:00:00 UTC is not over")]
    end_jobs(sql)
    assert fire(NOW + 4 * HOUR) == [("enqueued", None)]
    assert sql("SELECT count(*) FROM jobs") == [(2,)]


def test_runs_that_queue_line_up_and_not_without_end(make, fire, monkeypatch):
    monkeypatch.setattr(firing, "MOST_WAITING", 3)
    make(overlap="queue")
    fired = [fire(NOW + n * HOUR)[0] for n in range(1, 5)]
    assert fired == [("enqueued", None)] * 3 + [("skipped", "3 of its runs wait already")]


def test_what_was_missed_is_said_and_not_made_up_for(make, fire, history):
    made = make()
    assert fire(NOW + 5 * HOUR + timedelta(minutes=10)) == [
        ("skipped", "missed: nothing fired schedules until 2026-10-24 17:10:00 UTC")
    ]
    assert made.next_run_at == NOW + 6 * HOUR
    assert [time for time, *_ in history()] == [NOW + HOUR]


def test_who_comes_back_in_time_for_the_newest_fires_that_one(make, fire, history):
    make()
    assert fire(NOW + 5 * HOUR + timedelta(seconds=59)) == [("enqueued", None)]
    assert [(time, outcome) for time, outcome, _ in history()] == [
        (NOW + HOUR, "skipped"), (NOW + 5 * HOUR, "enqueued"),
    ]  # fmt: skip


def test_the_newest_of_what_was_missed_is_made_up_for_where_that_is_wanted(make, fire, history):
    made = make(catch_up="one")
    assert fire(NOW + 5 * HOUR + timedelta(minutes=10)) == [("enqueued", None)]
    assert [(time, outcome) for time, outcome, _ in history()] == [
        (NOW + HOUR, "skipped"), (NOW + 5 * HOUR, "enqueued"),
    ]  # fmt: skip
    assert made.next_run_at == NOW + 6 * HOUR
    assert make("once", every=None, once="2026-10-24T13:00", catch_up="one").next_run_at == NOW + HOUR
    assert fire(NOW + 5 * HOUR + timedelta(minutes=10)) == [("enqueued", None)]


@pytest.mark.parametrize(("ends", "paused"), [(["failed", "failed"], True), (["failed", "succeeded"], False),
                                              (["failed", "cancelled", "failed"], False)])  # fmt: skip
def test_failures_in_a_row_pause_it_and_after_that_it_begins_anew(session, make, fire, sql, ends, paused):
    made = make(pause_on_failure=2)
    now = NOW
    for end in ends:
        now += HOUR
        assert fire(now) == [("enqueued", None)]
        end_jobs(sql, end)
    last = fire(now + HOUR)
    assert last == [("skipped", "paused: 2 failures in a row") if paused else ("enqueued", None)]
    assert (made.paused_because, made.next_run_at is None) == (
        ("2 failures in a row", True) if paused else (None, False)
    )
    if paused:
        schedules.resume(session, schedule=made, now=now + HOUR)
        session.commit()
        assert fire(now + 2 * HOUR) == [("enqueued", None)]


def test_a_deployment_that_failed_counts_until_it_is_tried_again_with_success(session, make, fire, shop, here, sql):
    made = make(task=None, deploy=DEPLOY, pause_on_failure=1)
    fire(NOW + HOUR)
    end_jobs(sql, "failed")
    assert session.scalars(select(Deployment.status)).one() == "failed"
    assert fire(NOW + 2 * HOUR) == [("skipped", "paused: 1 failures in a row")]
    assert made.paused_at is not None


def test_a_user_without_the_right_any_more_deploys_nothing(session, make, fire, shop, here, anna, sql):
    made = make(task=None, deploy=DEPLOY)
    task = make("task")
    users.set_active(session, user=anna, active=False)
    session.commit()
    assert fire(NOW + HOUR) == [("failed", "anna is disabled")] * 2
    assert (made.paused_because, task.paused_because, made.next_run_at) == (
        "anna is disabled",
        "anna is disabled",
        None,
    )
    assert sql("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM deployments)") == [(0, 0)]


def test_what_cannot_be_enqueued_is_a_failure_with_its_reason_and_goes_on(make, fire, shop, here, sql):
    make(task=None, deploy=DEPLOY)
    sql("UPDATE applications SET configuration = '{\"surprise\": 1}'")
    ((outcome, reason),) = fire(NOW + HOUR)
    assert outcome == "failed"
    assert "surprise" in reason
    sql("UPDATE applications SET configuration = '{}'")
    assert fire(NOW + 2 * HOUR) == [("enqueued", None)]
    assert sql("SELECT count(*) FROM jobs") == [(1,)]


def test_one_that_crashes_is_pushed_ahead_and_the_others_fire(make, fire, history, sql):
    make("bad", every=None, cron="0 * * * *")
    make("good")
    sql("UPDATE schedules SET cron = 'nonsense' WHERE name = 'bad'")
    fired = dict(fire(NOW + HOUR))
    assert fired.keys() == {"failed", "enqueued"}
    assert "ValueError" in fired["failed"]
    assert sql("SELECT next_run_at FROM schedules WHERE name = 'bad'") == [(NOW + 2 * HOUR,)]
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'schedule_run.created'") == [(2,)]


def test_an_error_of_others_does_not_show_what_it_says(make, fire, monkeypatch):
    make()

    def crash(*_: object) -> None:
        raise KeyError("s3cret")

    monkeypatch.setattr(firing, "_enqueue", crash)
    assert fire(NOW + HOUR) == [("failed", "unexpected KeyError")]


def test_a_time_that_was_fired_is_not_fired_again_when_somebody_sets_it_back(make, fire, sql):
    make(overlap="queue")
    fire(NOW + HOUR)
    sql("UPDATE schedules SET next_run_at = %s", NOW + HOUR)
    assert fire(NOW + HOUR) == [("skipped", "fired already")]
    assert sql("SELECT count(*) FROM jobs") == [(1,)]


def test_a_beat_that_dies_in_the_middle_has_done_nothing_and_another_does_it(session, make, fire, sql):
    make()

    def die() -> None:
        with get_db_session() as dying:
            assert firing.fire_next(dying, now=NOW + HOUR) is not None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        die()
    assert sql("SELECT count(*) FROM jobs") == [(0,)]
    assert fire(NOW + HOUR) == [("enqueued", None)]


def test_what_one_beat_holds_another_leaves_alone(make, database):
    make("one")
    make("two")
    with get_db_session() as first, get_db_session() as second, get_db_session() as third:
        found = [firing.fire_next(each, now=NOW + HOUR) for each in (first, second, third)]
    assert {each.schedule_id for each in found[:2]} == {1, 2}
    assert found[2] is None


def test_a_database_that_is_out_of_something_holds_up_one_schedule_until_the_next_run(make, sql, monkeypatch):
    for name in ("one", "two", "three"):
        make(name)
    sql("UPDATE schedules SET next_run_at = now()")
    real, raised = firing._enqueue, threading.Event()

    class Full(Exception):
        sqlstate = "53100"

    def once_full(session: Session, schedule: Schedule) -> Any:
        if schedule.name == "one" and not raised.is_set():
            raised.set()
            raise OperationalError("INSERT", {}, Full())
        return real(session, schedule)

    monkeypatch.setattr(firing, "_enqueue", once_full)
    assert [fired.schedule_id for fired in tick.fire_all()] == [2, 3]
    assert [fired.schedule_id for fired in tick.fire_all()] == [1]
    assert sql("SELECT count(*) FROM jobs") == [(3,)]


def test_the_tick_fires_what_is_due_and_leaves_no_entry_beside_the_runs(make, sql):
    make()
    sql("UPDATE schedules SET next_run_at = now() + interval '1 hour'")
    assert tick.fire() is None
    sql("UPDATE schedules SET next_run_at = now()")
    sql("UPDATE ticks SET last_run_at = NULL")
    assert tick.fire() == {}
    assert sql("SELECT count(*) FROM jobs") == [(1,)]
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'tick.changed'") == [(0,)]


def test_what_became_of_times_is_kept_as_long_as_jobs_are(session, make, fire, sql):
    from db.services import maintenance

    make()
    fire(NOW + HOUR)
    sql("UPDATE schedule_runs SET fired_at = now() - interval '31 days'")
    assert maintenance.tidy(session) == {"schedule_runs": 1}
