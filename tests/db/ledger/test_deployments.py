"""A deployment's status follows its job, in the transition's own transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from tests.db.ledger.conftest import enqueue


@pytest.fixture
def place(jobs) -> str:
    """The columns of a deployment that say who deploys what where."""
    name = uuid4().hex
    query = """
        WITH u AS (INSERT INTO users (username, email) VALUES (%(name)s, %(name)s) RETURNING id),
        a AS (INSERT INTO applications (name) VALUES (%(name)s) RETURNING id),
        i AS (INSERT INTO infrastructure (name, owner_id) SELECT %(name)s, id FROM u RETURNING id)
        SELECT format('%%s, %%s, %%s', u.id, a.id, i.id) FROM u, a, i"""
    return str(jobs.owner.execute(query, {"name": name}).fetchone()[0])


@pytest.fixture
def deploy(jobs, place):
    """Ask for a deployment; answers its job's id."""

    def ask(**given: Any) -> UUID:
        job_id = uuid4()
        with jobs.app.transaction():
            jobs.app.execute(
                f"INSERT INTO deployments (user_id, application_id, infrastructure_id, version, job_id)"
                f" VALUES ({place}, '1', %s)",
                [job_id],
            )
            return enqueue(jobs.app, id=job_id, **given)[0]

    return ask


def deployment(jobs, job_id: UUID) -> Any:
    cursor = jobs.owner.cursor(row_factory=namedtuple_row)
    return cursor.execute("SELECT * FROM deployments WHERE job_id = %s", [job_id]).fetchone()


def test_a_deployment_runs_while_its_job_runs(jobs, deploy):
    job_id = deploy()
    assert deployment(jobs, job_id).status == "pending"
    held = jobs.take_and_begin(job_id)
    row = deployment(jobs, job_id)
    assert (row.status, row.started_at, row.finished_at) == ("running", jobs.row(job_id).started_at, None)
    jobs.finish(held)
    row = deployment(jobs, job_id)
    assert (row.status, row.error_message, row.finished_at) == ("success", None, jobs.row(job_id).finished_at)


@pytest.mark.parametrize(
    ("outcome", "status", "message"),
    [
        ("failed", "failed", "exit code 1"),
        ("timeout", "failed", "exit code 1"),
        ("lost", "error", "lost: exit code 1"),
        ("interrupted", "error", "interrupted: exit code 1"),
        ("cancelled", "cancelled", "exit code 1"),
    ],
)
def test_an_end_that_is_no_success_says_why(jobs, deploy, outcome, status, message):
    held = jobs.take_and_begin(deploy())
    jobs.finish(held, outcome, error="exit code 1")
    row = deployment(jobs, held.id)
    assert (row.status, row.error_message) == (status, message)


def test_a_deployment_that_waits_is_cancelled_with_its_job(jobs, deploy):
    job_id = deploy()
    jobs.ledger.cancel(job_id, "not today")
    row = deployment(jobs, job_id)
    assert (row.status, row.error_message, row.started_at) == ("cancelled", "not today", None)


def test_a_deployment_whose_job_was_rescued_is_pending_again_and_keeps_its_first_start(jobs, deploy):
    held = jobs.take(deploy())
    first = deployment(jobs, held.id).started_at
    jobs.lose_lease(held)
    jobs.rescue()
    row = deployment(jobs, held.id)
    assert (row.status, row.error_message, row.finished_at) == ("pending", None, None)
    jobs.take(held.id)
    row = deployment(jobs, held.id)
    assert (row.status, row.started_at) == ("running", first)


def test_a_retry_clears_what_the_attempt_before_said(jobs, deploy):
    held = jobs.take(deploy(idempotent=True))
    jobs.finish(held, "failed", error="exit code 1", retry_in=timedelta())
    row = deployment(jobs, held.id)
    assert (row.status, row.error_message) == ("pending", None)


def test_a_deployment_whose_job_was_lost_after_its_begin_is_an_error(jobs, deploy):
    held = jobs.take_and_begin(deploy())
    jobs.lose_lease(held)
    jobs.rescue()
    row = deployment(jobs, held.id)
    assert row.status == "error"
    assert row.error_message.startswith("lost: worker worker one stopped answering")


def test_a_late_result_does_not_move_a_deployment(jobs, deploy):
    held = jobs.take_and_begin(deploy())
    jobs.lose_lease(held)
    jobs.rescue()
    assert jobs.finish(held) == "late"
    assert deployment(jobs, held.id).status == "error"


def test_a_deployment_follows_a_job_that_is_changed_by_hand(jobs, deploy):
    job_id = deploy()
    jobs.owner.execute(
        "UPDATE jobs SET state = 'cancelled', outcome = 'cancelled', finished_at = now() WHERE id = %s", [job_id]
    )
    assert deployment(jobs, job_id).status == "cancelled"


def test_both_entries_of_a_move_are_in_the_same_name_and_tell_the_same_task(jobs, place):
    job_id = uuid4()
    with jobs.app.transaction():
        jobs.app.execute("""SELECT set_config('ops.context', '{"actor_type": "user", "actor": "ada"}', true)""")
        jobs.app.execute(
            f"INSERT INTO deployments (user_id, application_id, infrastructure_id, version, job_id)"
            f" VALUES ({place}, '1', %s)",
            [job_id],
        )
        enqueue(jobs.app, id=job_id)
    jobs.take(job_id)
    rows = jobs.owner.execute(
        "SELECT action, actor, task_id FROM audit_logs WHERE task_id = %s ORDER BY id", [job_id]
    ).fetchall()
    assert rows == [
        ("job.enqueued", "ada", job_id),
        ("job.started", "ada", job_id),
        ("deployment.updated", "ada", job_id),
    ]


def test_a_claim_leaves_no_context_behind_for_the_next_statement_of_its_transaction(jobs, deploy, crowd):
    job_id = deploy()
    with crowd.transaction() as worker:
        worker.execute("SELECT ops_claim(%s, 'tests.task', gen_random_uuid(), 'w', 'h', '{}')", [job_id])
        assert worker.execute("SELECT current_setting('ops.context', true)").fetchone()[0] in (None, "")
        worker.rollback()


def test_a_deployment_that_has_another_job_by_now_is_not_moved_by_the_old_one(jobs, deploy):
    held = jobs.take(deploy())
    new = jobs.add()
    jobs.owner.execute("UPDATE deployments SET job_id = %s WHERE job_id = %s", [new, held.id])
    jobs.finish(held, "failed")
    assert deployment(jobs, new).status == "running"


def test_a_deployment_and_its_job_commit_together_or_not_at_all(jobs, place):
    with pytest.raises(psycopg.errors.ForeignKeyViolation), jobs.app.transaction():
        jobs.app.execute(
            f"INSERT INTO deployments (user_id, application_id, infrastructure_id, version, job_id)"
            f" VALUES ({place}, '1', gen_random_uuid())"
        )
