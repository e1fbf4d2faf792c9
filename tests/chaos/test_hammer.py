"""Sixteen processes on one ledger, with faults: whatever happens, every promise is kept.

``HAMMER_JOBS`` makes the runs larger: so many jobs in each.
"""

from __future__ import annotations

import os

import pytest

from tests.chaos.hammer import run
from tests.chaos.plan import Plan, Report
from tests.chaos.promises import broken_promises
from tests.conftest import SCHEMA, Database

JOBS = int(os.environ.get("HAMMER_JOBS", "300"))

pytestmark = pytest.mark.timeout(120 + JOBS // 4)


def hammer(database: Database, **given: object) -> Report:
    plan = Plan(jobs=JOBS, give_up_seconds=100 + JOBS / 5, **given)  # type: ignore[arg-type]
    report = run(plan, database.url, SCHEMA)
    assert broken_promises(report) == [], dict(report.counts)
    return report


@pytest.mark.slow
def test_deaths_stalls_cancels_and_lost_bells_break_no_promise(database):
    report = hammer(database, faults=True, keys=20)
    happened = " ".join(report.counts)
    for fault in ("bells lost", "bells doubled", "died after", "stalled", "repeated", "cancel: ", "rescued: "):
        assert fault in happened


def test_a_connection_that_is_cut_every_20_ms_costs_no_job_an_attempt(database):
    """Every statement that was cut is repeated and gets the answer that the first one would have had."""
    report = hammer(database, faults=False, keys=20, cut_every=0.02, lease_seconds=9.0)
    assert report.counts["calls repeated after a cut"] > 20
    assert report.counts["finish: late"] == 0
    assert {(job["state"], job["attempt"]) for job in report.jobs} == {("succeeded", 1)}
    assert len(report.effects) == JOBS


@pytest.mark.slow
def test_all_faults_at_once_break_no_promise(database):
    report = hammer(database, faults=True, keys=8, queues=1, cut_every=0.05)
    assert report.counts["backends cut"] > 20
