"""A paused ledger starts nothing; one that came back from a backup is paused, and a person decides what goes on."""

from __future__ import annotations

import pytest

from db.connection import get_db_session
from db.errors import Conflict
from db.models import Job
from db.service import DatabaseService
from db.services import pausing, waiting

#: What the row says of the server: of another one, of the same before it was recovered.
RESTORED = "UPDATE ledger_state SET server = server - 1, server_started_at = 'epoch'"
RECOVERED = "UPDATE ledger_state SET timeline = '00000000', server_started_at = 'epoch'"
RESTARTED = "UPDATE ledger_state SET server_started_at = 'epoch'"


@pytest.fixture(autouse=True)
def going_on(jobs):
    yield
    jobs.owner.execute("UPDATE ledger_state SET paused_at = NULL, paused_because = NULL, trusts_failover = false")


def paused(jobs) -> str | None:
    return jobs.app.execute("SELECT ops_paused()").fetchone()[0]


def resume(jobs, queued: str | None = None) -> bool:
    return jobs.app.execute("SELECT ops_resume(%s)", [queued]).fetchone()[0]


def entries(jobs, action: str) -> list:
    query = "SELECT details FROM audit_logs WHERE action = %s ORDER BY id"
    return [row[0] for row in jobs.owner.execute(query, [action]).fetchall()]


def test_nothing_starts_while_it_is_paused_and_what_runs_goes_on(jobs):
    running, waits = jobs.take(jobs.add()), jobs.add()
    with get_db_session(actor="ann") as session:
        pausing.pause(session, reason="moving house")
    assert jobs.claim(waits).verdict == "paused"
    jobs.all_due()
    assert jobs.ledger.relay(jobs.row(waits).queue, 10) == []
    assert jobs.state(waits)[0] == "queued"
    assert jobs.ledger.heartbeat(running.id, running.attempt, running.token) == "go"
    assert jobs.finish(running, "ok") == "succeeded"
    with get_db_session() as session:
        assert waiting.why(session, session.get(Job, waits)) == "the ledger is paused: moving house; ops resume"
        with pytest.raises(Conflict, match="paused already"):
            pausing.pause(session)
        pausing.resume(session)
        with pytest.raises(Conflict, match="not paused"):
            pausing.resume(session)
    assert jobs.claim(waits).verdict == "run"
    assert entries(jobs, "ledger.paused")[-1] == {"because": "asked", "reason": "moving house"}
    assert entries(jobs, "ledger.resumed")[-1]["because"] == "asked"


@pytest.mark.parametrize("happened", [RESTORED, RECOVERED])
def test_a_ledger_that_came_from_a_backup_pauses_before_its_first_claim(jobs, happened):
    waits, running = jobs.add(), jobs.take(jobs.add())
    jobs.lose_lease(running)
    jobs.owner.execute(happened)
    assert jobs.claim(waits).verdict == "paused"
    assert paused(jobs) == "restored"
    assert jobs.rescue() == {}, "of what ran when the backup was made nothing is known here"
    assert entries(jobs, "ledger.paused")[-1]["because"] == "restored"
    with get_db_session() as session, pytest.raises(Conflict) as error:
        pausing.resume(session)
    assert error.value.hint == "ops resume --queued cancel, or --queued run"
    assert paused(jobs) == "restored"


def test_a_restart_pauses_nothing_and_ends_no_pause(jobs):
    jobs.owner.execute(RESTARTED)
    assert paused(jobs) is None
    jobs.app.execute("SELECT ops_pause()")
    jobs.owner.execute(RESTARTED)
    assert paused(jobs) == "asked"


def test_after_a_restore_what_waits_may_be_cancelled(jobs):
    waits, harmless = jobs.add(), jobs.add(idempotent=True)
    jobs.owner.execute(RESTORED)
    assert paused(jobs) == "restored"
    later = jobs.add()
    assert resume(jobs, "cancel")
    assert jobs.state(waits)[0] == "cancelled"
    assert jobs.state(harmless)[0] == jobs.state(later)[0] == "queued", "it may run twice; it is of this database"
    assert entries(jobs, "ledger.resumed")[-1]["cancelled"] == 1


def test_after_a_restore_what_waits_may_be_run(jobs):
    waits = jobs.add()
    jobs.owner.execute(RESTORED)
    assert paused(jobs) == "restored"
    assert resume(jobs, "run")
    assert jobs.claim(waits).verdict == "run"


def test_after_a_restore_nobody_knows_how_far_a_claimed_job_came(jobs):
    """It had not begun when the backup was made, and may have begun after that."""
    claimed, harmless = jobs.take(jobs.add()), jobs.take(jobs.add(idempotent=True))
    jobs.owner.execute(RESTORED)
    assert paused(jobs) == "restored"
    resume(jobs, "run")
    jobs.lose_lease(claimed)
    jobs.lose_lease(harmless)
    assert jobs.rescue() == {claimed.id: ("failed", "lost"), harmless.id: ("queued", "interrupted")}


def test_a_trusted_failover_pauses_nothing_but_a_restore_does(jobs):
    with get_db_session() as session:
        pausing.resume(session, trust_failover=True)
    assert entries(jobs, "ledger.failover_trusted")[-1] == {"trusts_failover": True}
    jobs.owner.execute(RECOVERED)
    assert paused(jobs) is None
    jobs.owner.execute(RESTORED)
    assert paused(jobs) == "restored"


def test_the_server_is_looked_at_once_per_start(jobs):
    jobs.owner.execute(RESTORED)
    assert paused(jobs) == "restored"
    before = jobs.owner.execute("SELECT xmin FROM ledger_state").fetchone()
    paused(jobs)
    assert jobs.owner.execute("SELECT xmin FROM ledger_state").fetchone() == before


def test_a_deployment_that_is_cancelled_after_a_restore_says_why(jobs, database):
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("ann", "ann@example.org", role="admin")
        app = service.register_application("web", ["true"])
        infra = service.register_infrastructure("here", user.id)
        deployment = service.create_deployment(user.id, app.id, infra.id, "v1").id
    jobs.owner.execute(RESTORED)
    assert paused(jobs) == "restored"
    resume(jobs, "cancel")
    row = jobs.owner.execute("SELECT status, error_message FROM deployments WHERE id = %s", [deployment]).fetchone()
    assert row == ("cancelled", "it may have been run by the database that was lost")
