"""Schedules with a real beat and a real worker."""

from __future__ import annotations

import pytest

from db.connection import get_db_session
from db.repositories import ScheduleRepository, UserRepository
from db.services import schedules
from tests.e2e.platform import Platform
from tests.e2e.process import until

pytestmark = pytest.mark.e2e


def runs(platform: Platform, outcome: str = "enqueued") -> list[int]:
    rows = platform.rows("SELECT deployment_id FROM schedule_runs WHERE outcome = %s ORDER BY fire_at", outcome)
    return [row["deployment_id"] for row in rows]


def succeeded(platform: Platform) -> int:
    return len(platform.rows("SELECT 1 FROM deployments WHERE status = 'success'"))


def test_a_schedule_deploys_until_it_is_paused_and_by_hand_after_that(platform: Platform) -> None:
    first = platform.deploy(app="site", command=["/bin/true"])
    platform.worker()
    platform.beat()
    assert platform.wait_ended(first) == "success"
    with get_db_session() as session:
        user = UserRepository(session).require(platform.user)
        deploy = {"application": "site", "infrastructure": "infra", "version": "2"}
        made = schedules.register(session, user_id=user.id, name="often", cron="* * * * *", deploy=deploy)
        schedules.edit(session, schedule=made, every="1s")
    until(lambda: succeeded(platform) >= 4, "three deployments have succeeded by schedule")
    with get_db_session() as session:
        schedules.pause(session, schedule=ScheduleRepository(session).require_by_name("often"))
    done = runs(platform)
    until(lambda: succeeded(platform) == len(done) + 1, "what it had enqueued has ended")
    ticked = platform.tick("schedules")
    until(lambda: platform.tick("schedules") > ticked, "the tick goes on")
    assert runs(platform) == done, "a paused one fires no more"
    with get_db_session() as session:
        run = schedules.run_now(session, schedule=ScheduleRepository(session).require_by_name("often"))
    until(lambda: succeeded(platform) == len(done) + 2, "what was run by hand has succeeded")
    assert platform.deployment(run.deployment_id)["status"] == "success"
    # Each time once, a second apart.
    seconds = platform.rows(
        "SELECT extract(epoch FROM fire_at - lag(fire_at) OVER (ORDER BY fire_at))::float AS apart FROM schedule_runs"
        " WHERE NOT by_hand"
    )
    assert all(row["apart"] is None or row["apart"] == round(row["apart"]) >= 1 for row in seconds)
