"""What grows is kept for its time and no longer, a bounded piece at a time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update

from db.models import Deployment, DeploymentLog, Job
from db.services import deployments, maintenance
from tests.conftest import SCHEMA
from worker.servers import OWNER_ROLE


def age(session, days: float) -> None:
    """Everything that has ended did so this long ago."""
    then = func.now() - timedelta(days=days)
    session.execute(update(Job).where(Job.finished_at.is_not(None)).values(finished_at=then))
    session.execute(update(Deployment).where(Deployment.finished_at.is_not(None)).values(finished_at=then))
    session.commit()


def count(session, table: str) -> int:
    return session.scalar(text(f"SELECT count(*) FROM {SCHEMA}.{table}"))


@pytest.fixture
def ended(session, asked, run) -> Deployment:
    """A deployment that has ended and printed three lines."""
    deployments.append_log(session, deployment_id=asked.id, attempt=1, pieces=[("stdout", "line\n")] * 3)
    run(asked)
    return asked


def test_a_fresh_database_needs_nothing(session, ended):
    assert maintenance.tidy(session) is None
    assert (count(session, "jobs"), count(session, "deployment_logs")) == (1, 3)


def test_jobs_and_logs_go_when_their_time_has_passed_and_the_deployment_stays(session, ended):
    age(session, 30.1)
    assert maintenance.tidy(session) == {"jobs": 1}
    age(session, 90.1)
    assert maintenance.tidy(session) == {"log_chunks": 3}
    session.commit()
    session.refresh(ended)
    assert (ended.status, ended.job_id) == ("success", None)
    assert maintenance.tidy(session) is None


def test_the_settings_say_how_long(session, ended, monkeypatch):
    monkeypatch.setattr(maintenance.get_settings(), "job_retention_days", 400)
    monkeypatch.setattr(maintenance.get_settings(), "log_retention_days", 1)
    age(session, 399)
    assert maintenance.tidy(session) == {"log_chunks": 3}


def test_what_has_not_ended_is_never_removed(session, asked, run):
    deployments.append_log(session, deployment_id=asked.id, attempt=1, pieces=[("stdout", "line\n")])
    session.execute(update(Job).values(created_at=func.now() - timedelta(days=4000)))
    session.execute(update(Deployment).values(created_at=func.now() - timedelta(days=4000)))
    session.commit()
    assert maintenance.tidy(session) is None
    run(asked, None)
    assert maintenance.tidy(session) is None


def test_one_run_removes_a_bounded_piece_and_the_next_goes_on(session, ended, monkeypatch):
    session.execute(
        text(
            f"INSERT INTO {SCHEMA}.jobs (id, task, queue, state, outcome, finished_at)"
            " SELECT gen_random_uuid(), 't', 'q', 'succeeded', 'ok', now() FROM generate_series(1, 6)"
        )
    )
    monkeypatch.setattr(maintenance, "BATCH", 2)
    age(session, 1000)
    done = []
    while (changed := maintenance.tidy(session)) is not None:
        done.append(changed)
    assert done == [{"jobs": 2, "log_chunks": 2}, {"jobs": 2, "log_chunks": 1}, {"jobs": 2}, {"jobs": 1}]


def test_a_job_that_somebody_holds_is_left_for_the_next_run(session, ended, database):
    age(session, 1000)
    with database.connect() as other, other.transaction():
        other.execute("SELECT 1 FROM jobs FOR UPDATE")
        assert maintenance.tidy(session) == {"log_chunks": 3}
        session.commit()
    assert maintenance.tidy(session) == {"jobs": 1}


def test_partitions_are_made_ahead_and_dropped_after_their_time(session, database):
    with database.connect(OWNER_ROLE) as owner:
        owner.execute(
            "CREATE TABLE audit_logs_2020_01 PARTITION OF audit_logs FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')"
        )
        (last,) = owner.execute("SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent ="
                                " 'audit_logs'::regclass").fetchone()  # fmt: skip
        owner.execute(f"DROP TABLE {last}")
    assert maintenance.tidy(session) == {"partitions_made": 1, "partitions_dropped": 1}
    session.commit()
    assert maintenance.tidy(session) is None


def test_removals_are_in_the_trail(session, ended):
    job = ended.job_id
    age(session, 1000)
    maintenance.tidy(session)
    session.commit()
    query = text(f"SELECT resource_id FROM {SCHEMA}.audit_logs WHERE action = 'job.deleted'")
    assert session.scalars(query).all() == [str(job)]
    assert session.scalars(select(DeploymentLog)).all() == []
