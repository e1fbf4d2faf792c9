"""Schedules: written down, changed, paused, run by hand, and by whose rights."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from db.errors import AlreadyExists, Conflict, InvalidInput, NotFound, OpsError, PermissionDenied
from db.models import Deployment, Job, Schedule, ScheduleRun
from db.services import schedules
from tests.db.services.conftest import one_line, rows

NOW = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)
TASK = {"name": "shop.report", "queue": "shop", "args": [1, "two"], "kwargs": {"three": None}}
DEPLOY = {"application": "shop", "infrastructure": "here", "version": "v1"}


@pytest.fixture
def nightly(session, anna) -> Schedule:
    """A task of anna's, every night."""
    return schedules.register(
        session, user_id=anna.id, now=NOW, name="nightly", cron="30 2 * * *", timezone="Europe/Berlin", task=TASK
    )


def test_a_schedule_is_written_down_as_it_was_said(session, anna, shop, here, nightly):
    assert nightly.next_run_at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert schedules.values_of(nightly) == {
        "name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "task": TASK,
    }  # fmt: skip
    made = schedules.register(
        session, user_id=anna.id, now=NOW, name="hourly", every="1h", deploy=DEPLOY, overlap="queue", catch_up="one",
        pause_on_failure=3,
    )  # fmt: skip
    assert made.next_run_at == NOW + timedelta(hours=1)
    assert schedules.values_of(made) == {
        "name": "hourly", "every": "1h", "deploy": DEPLOY, "overlap": "queue", "catch_up": "one",
        "pause_on_failure": 3,
    }  # fmt: skip
    once = schedules.register(
        session, user_id=anna.id, now=NOW, name="once", once="2026-10-25T02:30", timezone="Europe/Berlin", task=TASK
    )
    assert once.next_run_at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert schedules.values_of(once)["once"] == "2026-10-25T00:30:00+00:00"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "a b"}, "a name is up to 63"),
        ({"cron": "61 * * * *"}, "cron: .*bad minute"),
        ({"cron": "* * * * * *"}, "cron: .*five fields"),
        ({"cron": None}, "one of cron, every and once"),
        ({"every": "1h"}, "one of cron, every and once"),
        ({"cron": None, "every": "0s"}, "every: .*from 1s"),
        ({"cron": None, "every": "1h", "timezone": "Europe/Berlin"}, "same in every time zone"),
        ({"task": TASK | {"name": "tasks.deployments.run"}}, "task.name: .*platform's own"),
        ({"task": TASK | {"name": "tasks.notifications.send"}}, "task.name: .*platform's own"),
        ({"cron": None, "once": "tomorrow"}, "once: .*2026-12-01T03:00"),
        ({"cron": None, "once": "2026-12-01"}, "once: .*2026-12-01T03:00"),
        ({"cron": None, "once": "0001-01-01T00:00"}, "once: .*year"),
        ({"cron": None, "once": "2026-10-24T11:00"}, "once: this time has passed"),
        ({"timezone": "Mars/Base"}, "timezone: .*no time zone of this name"),
        ({"timezone": "../../etc/passwd"}, "timezone: no time zone"),
        ({"task": None}, "one of deploy and task"),
        ({"deploy": DEPLOY}, "one of deploy and task"),
        ({"task": TASK | {"queue": ""}}, "task.queue"),
        ({"task": {"name": "x"}}, "task.queue"),
        ({"task": TASK | {"queue": "amq.x"}}, "broker's own"),
        ({"task": TASK | {"name": "x" * 256}}, "task.name"),
        ({"task": TASK | {"name": "a\nb"}}, "task.name"),
        ({"task": TASK | {"args": [float("nan")]}}, "task.args"),
        ({"task": TASK | {"args": [2**70]}}, "too large"),
        ({"task": TASK | {"kwargs": {"a": "\0"}}}, "NUL"),
        ({"task": TASK | {"args": ["x" * 70_000]}}, "65536 bytes"),
        ({"task": TASK | {"priority": 10}}, "task.priority"),
        ({"task": None, "deploy": DEPLOY | {"version": "../up"}}, "version"),
        ({"overlap": "maybe"}, "overlap"),
        ({"catch_up": "all"}, "catch_up"),
        ({"pause_on_failure": 0}, "pause_on_failure"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_line_and_nothing_is_written(session, anna, change, says):
    before = rows(session)
    values = {"name": "x", "cron": "0 0 * * *", "task": TASK} | change
    with pytest.raises(InvalidInput, match=says) as error:
        schedules.register(session, user_id=anna.id, now=NOW, **values)
    one_line(error)
    assert rows(session) == before


def test_what_is_to_be_deployed_must_be_there(session, anna, shop, here, nightly):
    for wrong in ({"application": "nothing"}, {"infrastructure": "nowhere"}):
        with pytest.raises(NotFound, match="there is no"):
            schedules.register(session, user_id=anna.id, name="x", every="1h", deploy=DEPLOY | wrong)
    with pytest.raises(AlreadyExists, match="schedule"):
        schedules.register(session, user_id=anna.id, name="NIGHTLY", every="1h", task=TASK)


def test_an_edit_changes_what_is_named_and_counts_anew_only_where_the_time_is_another(session, nightly):
    due = nightly.next_run_at
    same = schedules.edit(session, schedule=nightly, task=TASK | {"queue": "other"}, now=NOW + timedelta(days=9))
    assert (same.queue, same.next_run_at) == ("other", due)
    other = schedules.edit(session, schedule=nightly, every="10m", now=NOW)
    assert (other.kind, other.cron, other.timezone) == ("interval", None, "UTC")
    assert other.next_run_at == NOW + timedelta(minutes=10)
    with pytest.raises(InvalidInput, match="cron"):
        schedules.edit(session, schedule=nightly, cron="x")


def test_an_edit_to_a_deployment_and_back_leaves_nothing_of_the_other(session, shop, here, nightly):
    made = schedules.edit(session, schedule=nightly, deploy=DEPLOY)
    assert (made.task, made.queue, made.args, made.application.name) == (None, None, [], "shop")
    made = schedules.edit(session, schedule=nightly, task=TASK)
    assert (made.task, made.application, made.version) == ("shop.report", None, None)


def test_an_edit_that_changes_nothing_writes_nothing(session, shop, here, nightly, sql):
    session.commit()
    before = nightly.version_id, sql("SELECT count(*) FROM audit_logs")
    schedules.edit(session, schedule=nightly, **schedules.values_of(nightly))
    session.commit()
    assert (nightly.version_id, sql("SELECT count(*) FROM audit_logs")) == before


def test_a_paused_one_has_no_next_time_and_stays_paused_when_it_is_edited(session, nightly):
    schedules.pause(session, schedule=nightly, reason="freeze")
    assert (nightly.next_run_at, nightly.paused_because) == (None, "freeze")
    with pytest.raises(Conflict, match="paused already"):
        schedules.pause(session, schedule=nightly)
    assert schedules.edit(session, schedule=nightly, every="1h", now=NOW).next_run_at is None
    assert schedules.upcoming(session, schedule=nightly, count=3) == []
    resumed = schedules.resume(session, schedule=nightly, now=NOW + timedelta(days=1))
    assert resumed.paused_because is None
    assert NOW + timedelta(days=1) < resumed.next_run_at <= NOW + timedelta(days=1, hours=1)
    with pytest.raises(Conflict, match="is not paused"):
        schedules.resume(session, schedule=nightly)


def test_one_whose_only_time_passed_while_it_was_paused_says_so(session, anna):
    once = schedules.register(session, user_id=anna.id, name="once", once="2026-10-25T02:30", task=TASK, now=NOW)
    schedules.pause(session, schedule=once)
    with pytest.raises(InvalidInput, match="this time has passed"):
        schedules.resume(session, schedule=once, now=NOW + timedelta(days=2))


def test_run_by_hand_it_does_the_same_beside_its_own_times(session, nightly):
    due = nightly.next_run_at
    run = schedules.run_now(session, schedule=nightly)
    job = session.get(Job, run.job_id)
    assert (job.task, job.queue, job.args, job.kwargs) == ("shop.report", "shop", [1, "two"], {"three": None})
    assert (run.by_hand, nightly.next_run_at) == (True, due)
    with pytest.raises(Conflict, match="is not over"):
        schedules.run_now(session, schedule=nightly)
    schedules.edit(session, schedule=nightly, overlap="queue")
    assert schedules.run_now(session, schedule=nightly).job_id != run.job_id


def test_a_deployment_that_is_run_by_hand_is_its_users(session, anna, shop, here, person):
    made = schedules.register(session, user_id=anna.id, name="x", every="1h", deploy=DEPLOY)
    run = schedules.run_now(session, schedule=made, actor=person("root", "admin"))
    deployment = session.get(Deployment, run.deployment_id)
    assert (deployment.user_id, deployment.version, deployment.job_id) == (anna.id, "v1", run.job_id)


def test_it_acts_with_its_users_rights_so_others_do_not_say_what_it_does(session, anna, nightly, person):
    bob, vera, root = person("bob"), person("vera", "viewer"), person("root", "admin")
    acts: dict[str, Any] = {
        "edit": lambda actor: schedules.edit(session, schedule=nightly, actor=actor, overlap="queue"),
        "run": lambda actor: schedules.run_now(session, schedule=nightly, actor=actor),
        "remove": lambda actor: schedules.remove(session, schedule=nightly, actor=actor),
    }
    for act in acts.values():
        for actor in (bob, vera):
            with pytest.raises(PermissionDenied):
                act(actor)
    with pytest.raises(PermissionDenied):
        schedules.pause(session, schedule=nightly, actor=vera)
    schedules.pause(session, schedule=nightly, actor=bob, reason="it does harm")
    with pytest.raises(PermissionDenied):
        schedules.resume(session, schedule=nightly, actor=bob)
    with pytest.raises(PermissionDenied, match="for others"):
        schedules.register(session, user_id=anna.id, actor=bob, name="y", every="1h", task=TASK)
    with pytest.raises(PermissionDenied):
        schedules.register(session, user_id=vera.id, actor=vera, name="y", every="1h", task=TASK)
    for act in acts.values():
        act(root)


def test_one_that_was_removed_leaves_its_story(session, nightly, sql):
    schedules.run_now(session, schedule=nightly)
    session.commit()
    schedules.remove(session, schedule=nightly)
    session.commit()
    assert session.scalars(select(ScheduleRun)).all() == []
    found = sql("SELECT action FROM audit_logs WHERE resource_type LIKE 'schedule%' ORDER BY id")
    assert found == [
        ("schedule.created",), ("schedule_run.created",), ("schedule.deleted",), ("schedule_run.deleted",),
    ]  # fmt: skip
    assert sql("SELECT changes->'args' FROM audit_logs WHERE action = 'schedule.created'") == [([None, "[secret]"],)]


def test_who_edits_what_somebody_else_has_changed_meanwhile_is_told(database, session, nightly):
    session.commit()
    from db.connection import get_db_session
    from db.repositories import ScheduleRepository

    with get_db_session() as other:
        schedules.pause(other, schedule=ScheduleRepository(other).require_by_name("nightly"))
    with pytest.raises(OpsError, match="changed by somebody else"):
        schedules.edit(session, schedule=nightly, every="1h")
