"""Deployments and their jobs, moved at random by everybody who may: what must be so is so after each step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from db.connection import get_db_session
from db.errors import Conflict, InvalidInput
from db.ledger import Ledger
from db.service import DatabaseService
from db.services import deployments
from db.states import DEPLOYMENT_TRANSITIONS, DeploymentStatus, JobState, Outcome, deployment_status
from tests.conftest import SCHEMA, Database
from worker.servers import OWNER_ROLE

MOVES = {"started", "succeeded", "failed", "lost", "retried", "cancelled", "expired"}
PICK = st.integers(0, 99)
Row = dict[str, Any]


class Transitions(RuleBasedStateMachine):
    """Two places to deploy to, so that some deployments wait for each other and some do not."""

    def __init__(self, owner: psycopg.Connection, ledger: Ledger, places: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.owner, self.ledger, self.places = owner, ledger, places
        self.held: dict[UUID, tuple[int, UUID]] = {}
        self.given_up: list[tuple[UUID, int, UUID]] = []
        self.deed = ""
        self.late = self.last = 0

    @initialize()
    def nothing_is_there(self) -> None:
        for table in ("deployments", "jobs"):
            self.owner.execute(f"DELETE FROM {table}")
        self.owner.execute("SELECT ops_resume()")
        self.paused = False
        self.look()
        for place in (0, 0, 1):
            self.create(place, 5)

    # What people do.

    @rule(place=st.integers(0, 1), priority=st.integers(4, 6))
    def create(self, place: int, priority: int) -> None:
        with get_db_session() as session:
            DatabaseService(session).create_deployment(*self.places[place], "v1", priority=priority)
        self.deed = "create"

    @precondition(lambda self: self.rows)
    @rule(pick=PICK, reason=st.sampled_from([None, "enough"]))
    def cancel(self, pick: int, reason: str | None) -> None:
        row, job = self.any_deployment(pick)
        with get_db_session() as session:
            try:
                DatabaseService(session).cancel_deployment(row["id"], reason)
            except Conflict:
                assert JobState(job["state"]).is_final
        self.deed = "cancel"

    @precondition(lambda self: self.rows)
    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        row, _ = self.any_deployment(pick)
        again = DeploymentStatus(row["status"]) in (
            DeploymentStatus.FAILED, DeploymentStatus.ERROR, DeploymentStatus.CANCELLED
        )  # fmt: skip
        with get_db_session() as session:
            try:
                DatabaseService(session).retry_deployment(row["id"])
            except Conflict:
                assert not again
            else:
                assert again
        self.deed = "retry"

    @precondition(lambda self: self.rows)
    @rule(pick=PICK, to=st.sampled_from(DeploymentStatus), message=st.sampled_from([None, "why"]))
    def update_status(self, pick: int, to: DeploymentStatus, message: str | None) -> None:
        row, _ = self.any_deployment(pick)
        with get_db_session() as session:
            try:
                DatabaseService(session).update_deployment_status(row["id"], to, message)
            except (Conflict, InvalidInput):
                assert (row["status"], to) != ("success", "rolled_back")
            else:
                assert (row["status"], to) == ("success", "rolled_back")
        self.deed = "update_status"

    @precondition(lambda self: not self.paused)
    @rule()
    def pause(self) -> None:
        self.owner.execute("SELECT ops_pause('we look')")
        self.paused = True
        self.deed = "pause"

    def resume(self) -> None:
        self.owner.execute("SELECT ops_resume()")
        self.paused = False
        self.all_is_as_it_must_be()

    # What workers do.

    @precondition(lambda self: any(each["state"] == "queued" for each in self.jobs.values()))
    @rule(pick=PICK, begins=st.booleans(), outcome=st.sampled_from([None, *Outcome]))
    def attempt(self, pick: int, begins: bool, outcome: Outcome | None) -> None:
        """All of one attempt, or its beginning, so that what comes late in a job's life comes often enough."""
        if self.paused:
            self.resume()
        waiting = [key for key, each in self.jobs.items() if each["state"] == "queued"]
        job_id = waiting[pick % len(waiting)]
        self.claim(list(self.jobs).index(job_id))
        self.all_is_as_it_must_be()
        if job_id not in self.held:
            return
        held = list(self.held).index(job_id)
        if begins:
            self.begin(held)
            self.all_is_as_it_must_be()
        if outcome is not None and outcome is not Outcome.EXPIRED:
            self.finish(held, outcome)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def claim(self, pick: int) -> None:
        job_id = list(self.jobs)[pick % len(self.jobs)]
        job, token = self.jobs[job_id], uuid4()
        claim = self.ledger.claim(job_id, deployments.RUN_TASK, token, worker="w", host="h", holders=["1:1"])
        same = [each for each in self.jobs.values() if each["lock_key"] == job["lock_key"]]
        ahead = [
            j for j in same if j["state"] == "queued" and (j["priority"], j["seq"]) < (job["priority"], job["seq"])
        ]
        expected = (
            "duplicate" if job["state"] != "queued"
            else "paused" if self.paused
            else "expired" if job["expires_at"]
            else "lock_busy" if any(each["state"] == "running" for each in same)
            else "not_head" if ahead
            else "run"
        )  # fmt: skip
        assert claim.verdict == expected
        if claim.verdict == "run":
            self.held[job_id] = (claim.attempt, token)
        self.deed = "claim"

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def begin(self, pick: int) -> None:
        job_id = self.any_held(pick)
        asked = self.jobs[job_id]["cancel_requested_at"] is not None
        lost = self.jobs[job_id]["lease_ran_out"]
        said = self.ledger.begin(job_id, *self.held[job_id], ["1:1", "2:2"])
        assert said == ("cancelled" if asked else "lost" if lost else "go")
        self.deed = "begin"

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def heartbeat(self, pick: int) -> None:
        job_id = self.any_held(pick)
        asked = self.jobs[job_id]["cancel_requested_at"] is not None
        assert self.ledger.heartbeat(job_id, *self.held[job_id]) == ("cancelled" if asked else "go")
        self.deed = "heartbeat"

    @precondition(lambda self: self.held)
    @rule(pick=PICK, outcome=st.sampled_from([each for each in Outcome if each is not Outcome.EXPIRED]))
    def finish(self, pick: int, outcome: Outcome) -> None:
        job_id = self.any_held(pick)
        attempt, token = self.held.pop(job_id)
        job = self.jobs[job_id]
        state, _ = self.ledger.finish(job_id, attempt, token, outcome, error=None if outcome is Outcome.OK else "why")
        put_back = outcome in (Outcome.LOST, Outcome.INTERRUPTED) and job["began_at"] is None and job["rescues"] < 2
        assert state == (
            "succeeded" if outcome is Outcome.OK
            else "cancelled" if outcome is Outcome.CANCELLED or job["cancel_requested_at"]
            else "queued" if put_back
            else "failed"
        )  # fmt: skip
        self.given_up.append((job_id, attempt, uuid4()))
        self.deed = "finish"

    @precondition(lambda self: self.given_up)
    @rule(pick=PICK)
    def finish_what_is_not_held(self, pick: int) -> None:
        job_id, attempt, token = self.given_up[pick % len(self.given_up)]
        assert self.ledger.finish(job_id, attempt, token, "ok")[0] == "late"
        self.late += 1
        self.deed = "late"

    # What time does, and who looks after it.

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def the_lease_runs_out(self, pick: int) -> None:
        job_id = self.any_held(pick)
        self.owner.execute("UPDATE jobs SET lease_until = now() - interval '1 min' WHERE id = %s", [job_id])

    @precondition(lambda self: any(each["state"] == "queued" for each in self.jobs.values()))
    @rule(pick=PICK)
    def its_time_passes(self, pick: int) -> None:
        waiting = [key for key, each in self.jobs.items() if each["state"] == "queued"]
        self.owner.execute("UPDATE jobs SET expires_at = '2001-01-01' WHERE id = %s", [waiting[pick % len(waiting)]])

    @rule(kill=st.booleans(), pick=PICK)
    def rescue(self, kill: bool, pick: int) -> None:
        dead = [self.held[self.any_held(pick)][1]] if kill and self.held else []
        moved = {row["id"] for row in self.ledger.rescue(timedelta(0), dead)[0]}
        over = {key for key, job in self.jobs.items() if job["state"] == "queued" and job["expires_at"]}
        lost = {key for key, (_, token) in self.held.items() if token in dead or self.jobs[key]["lease_ran_out"]}
        assert moved == over | lost
        for key in lost:
            self.given_up.append((key, *self.held.pop(key)))
        self.deed = "rescue"

    # What must be so.

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        before_rows, before_jobs, late = self.rows, self.jobs, self.late
        told = self.look()
        self.late = 0
        for key, row in self.rows.items():
            self.follows(row)
            self.one_entry(before_rows.get(key), row, told.pop(("deployment", str(key)), []))
        running = [each["lock_key"] for each in self.jobs.values() if each["state"] == "running"]
        assert len(running) == len(set(running)), "two run under one key"
        for job_id, job in self.jobs.items():
            entries = told.pop(("job", str(job_id)), [])
            late -= sum(action == "job.late_result" for action, _ in entries)
            self.one_move(before_jobs.get(job_id), job, [each for each in entries if each[0] != "job.late_result"])
        assert late == 0
        assert {kind for kind, _ in told} <= {"ledger"}

    def follows(self, row: Row) -> None:
        job = self.jobs[UUID(row["job_id"])]
        outcome = None if job["outcome"] is None else Outcome(job["outcome"])
        if row["status"] != "rolled_back":
            assert row["status"] == deployment_status(JobState(job["state"]), outcome)
        else:
            assert job["state"] == "succeeded"

    def one_entry(self, before: Row | None, row: Row, entries: list[tuple[str, Any]]) -> None:
        old = before or dict.fromkeys(row)
        changes = {name: [old[name], value] for name, value in row.items() if old[name] != value}
        action = "deployment.updated" if before else "deployment.created"
        assert entries == ([(action, changes)] if changes else [])
        if before and before["status"] != row["status"]:
            was, now = DeploymentStatus(before["status"]), DeploymentStatus(row["status"])
            assert now in DEPLOYMENT_TRANSITIONS[was]
            assert not was.is_final or self.deed == ("retry" if now is DeploymentStatus.PENDING else "update_status")

    def one_move(self, before: Row | None, job: Row, entries: list[tuple[str, Any]]) -> None:
        if before is None:
            assert entries == [("job.enqueued", None)]
        elif before["state"] != job["state"]:
            assert not JobState(before["state"]).is_final
            ((action, changes),) = entries
            assert action.removeprefix("job.") in MOVES
            assert changes == {"state": [before["state"], job["state"]]}
        elif before["cancel_requested_at"] != job["cancel_requested_at"]:
            assert entries == [("job.cancel_requested", None)]
        elif before["expires_at"] != job["expires_at"]:
            assert entries == [("job.updated", {"expires_at": [before["expires_at"], job["expires_at"]]})]
        elif before["error"] != job["error"]:  # a reason that came with the second cancel
            assert entries == [("job.updated", {"error": [None, job["error"]]})]
        else:
            assert entries == []

    def look(self) -> dict[tuple[str, str], list[tuple[str, Any]]]:
        """All rows as they are now; the entries since the last look, by what they are about."""
        self.rows: dict[int, Row] = dict(
            self.owner.execute(
                "SELECT id, to_jsonb(d) - 'updated_at' || '{\"frozen\": \"[secret]\"}' FROM deployments d ORDER BY id"
            ).fetchall()
        )
        self.jobs: dict[UUID, Row] = dict(
            self.owner.execute(
                "SELECT id, to_jsonb(j) || jsonb_build_object('lease_ran_out', coalesce(lease_until < now(), false))"
                " FROM jobs j ORDER BY seq"
            ).fetchall()
        )
        told = defaultdict(list)
        query = "SELECT id, resource_type, resource_id, action, changes FROM audit_logs WHERE id > %s ORDER BY id"
        for last, kind, key, action, changes in self.owner.execute(query, [self.last]).fetchall():
            self.last = last
            told[kind, key].append((action, changes))
        return told

    def any_deployment(self, pick: int) -> tuple[Row, Row]:
        row = self.rows[sorted(self.rows)[pick % len(self.rows)]]
        return row, self.jobs[UUID(row["job_id"])]

    def any_held(self, pick: int) -> UUID:
        return list(self.held)[pick % len(self.held)]


@pytest.fixture
def machine(database: Database) -> Iterator[Any]:
    """Makes machines that work on one database, which each one cleans."""
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("ann", "ann@example.org", role="admin")
        here = service.register_infrastructure("here", user.id)
        apps = [service.register_application(name, ["deploy"]) for name in ("one", "two")]
        places = [(user.id, app.id, here.id) for app in apps]
    ledger = Ledger(database.url, SCHEMA)
    with database.connect(OWNER_ROLE) as owner:
        yield lambda: Transitions(owner, ledger, places)
    ledger.close()


CALM = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_whoever_moves_them_deployments_follow_their_jobs_and_each_change_is_told_once(machine):
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40, **CALM))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_for_longer(machine):
    run_state_machine_as_test(machine, settings=settings(max_examples=300, stateful_step_count=60, **CALM))
