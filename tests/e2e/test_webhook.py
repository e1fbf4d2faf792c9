"""A deployment by webhook, through a real worker: what the receiver says is what the deployment is."""

from __future__ import annotations

import pytest

from db.connection import get_db_session
from db.service import DatabaseService
from tests.e2e.platform import Deployed, Platform
from tests.e2e.process import until
from tests.tasks.test_driver_webhook import Ci, accepts, cut, running

pytestmark = pytest.mark.e2e
SECRET = "the-secret-of-the-hook"


def asked(platform: Platform, ci: Ci) -> Deployed:
    """One more deployment of the application there."""
    user = platform.user
    with get_db_session() as session:
        door = DatabaseService(session)
        if not door.list_infrastructure().items:
            door.store_api_key(user, "ci", "hook", SECRET)
            door.register_application("web", ["unused"], configuration={"environment": {"A": "1"}})
            settings = {"url": f"{ci.url}/deploy", "secret": "ci/hook", "interval_seconds": 0.1}
            door.register_infrastructure("ci", user, driver="webhook", settings=settings)
        app, place = door.list_applications().items[0], door.list_infrastructure().items[0]
        made = door.create_deployment(user, app.id, place.id, "v1")
        session.flush()
        return Deployed(made.id, str(made.job_id), "")


def test_it_ends_as_the_receiver_says_or_says_that_nobody_can_know(platform: Platform) -> None:
    platform.worker("w1")
    with running(Ci()) as ci:
        accepts(ci, {"status": "running"}, {"status": "passed", "message": f"with {SECRET}"})
        good = asked(platform, ci)
        assert platform.wait_ended(good) == "success"
        assert ci.requests[0].headers["X-Ops-Job"] == good.job
        accepts(ci, {"status": "failed", "message": "no room"})
        bad = asked(platform, ci)
        assert platform.wait_ended(bad) == "failed"
        assert platform.deployment(bad.id)["error_message"] == "the receiver says failed: no room"
        ci.replies["/deploy"] = cut
        lost = asked(platform, ci)
        assert platform.wait_ended(lost) == "error: lost"
        assert "it may have been heard" in platform.deployment(lost.id)["error_message"]
        accepts(ci, {"status": "running"}, cancel_url=f"{ci.url}/cancel")
        ci.replies["/cancel"] = lambda it: it.answer(200)
        ended = asked(platform, ci)
        until(lambda: "status: running" in platform.log_of(ended.id), "it is asked for")
        platform.cancel(ended)
        assert platform.wait_ended(ended) == "cancelled"
        assert len(ci.of("/cancel")) == 1
    assert SECRET not in "".join(platform.log_of(each.id) for each in (good, bad, lost, ended))
    assert SECRET not in str(platform.rows("SELECT * FROM jobs")) + str(platform.rows("SELECT * FROM deployments"))
