"""What the worker cannot tell any more, the supervisor tells the ledger."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.ledger import Ledger
from db.settings import libpq_conninfo
from tasks.supervisor import now
from tests.conftest import SCHEMA, Database
from tests.tasks.conftest import LONG, Program, Start, gone, python
from tests.tasks.supervised import STUBBORN, TICK, dead, ended, family, pids, up

NOBODY_KNOWS = "the driver ended without a result (exit code 3); nobody can know whether it took effect"


class TestReport:
    """What the worker cannot tell any more, the supervisor tells the ledger."""

    @pytest.fixture
    def running(self, database: Database, sql) -> dict[str, Any]:
        """A job that has begun, as the report of its supervisor names it."""
        ((job, _),) = sql("SELECT id, created FROM ops_enqueue('t', p_lease_seconds => 60)")
        token = uuid4()
        ledger = Ledger(database.url, SCHEMA)
        assert ledger.claim(job, "t", token, worker="w", host="h", holders=["1:0"]).verdict == "run"
        assert ledger.begin(job, 1, token, ["1:0"]) == "go"
        ledger.close()
        conninfo = libpq_conninfo(database.url)
        return {"conninfo": conninfo, "schema": SCHEMA, "job": str(job), "attempt": 1, "token": str(token)}

    def state(self, sql, report: dict[str, Any]) -> tuple:
        ((*found,),) = sql("SELECT state, outcome, error FROM jobs WHERE id = %s", UUID(report["job"]))
        return tuple(found)

    def test_a_dead_worker_kills_the_group_and_ends_the_job_as_interrupted(self, start, running, sql):
        supervisor = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)" + family(STUBBORN), report=running)
        driver = up(supervisor)
        children = pids(supervisor)
        supervisor.hang_up()
        supervisor.process.stdout.close()
        assert supervisor.process.wait() == 0
        dead(driver, *children)
        assert self.state(sql, running) == (
            "failed", "interrupted", "the worker died; the driver was stopped in the middle"
        )  # fmt: skip
        assert sql("SELECT action FROM audit_logs WHERE action = 'job.failed'") == [("job.failed",)]

    def test_a_lease_that_ran_out_is_told_to_both(self, start, running, sql):
        supervisor = start(TICK, report=running)
        up(supervisor)
        supervisor.say({"lease_end": now()})
        assert ended(supervisor) == ("lease ran out", -9)
        state, outcome, error = self.state(sql, running)
        assert (state, outcome) == ("failed", "interrupted")
        assert error.endswith("the driver was stopped in the middle")

    def test_what_the_worker_hears_is_the_workers_to_record(self, start, running, sql):
        supervisor = start("end('ok')", report=running)
        assert ended(supervisor) == ("exit", 0)
        assert self.state(sql, running) == ("running", None, None)

    def test_a_worker_that_died_before_the_driver_was_started_is_told_as_that(self, start, running, sql, tmp_path):
        supervisor = start(order=False, report=running)
        os.kill(supervisor.pid, signal.SIGSTOP)
        supervisor.order["argv"] = python(f"open({str(tmp_path / 'effect')!r}, 'w')")
        supervisor.say({"start": supervisor.order})
        supervisor.hang_up()
        supervisor.process.stdout.close()
        os.kill(supervisor.pid, signal.SIGCONT)
        supervisor.process.wait()
        assert self.state(sql, running)[1:] == ("interrupted", "worker died; the driver was not started")
        assert not (tmp_path / "effect").exists()

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            (0, ("succeeded", "ok", None)),
            (1, ("failed", "failed", "the driver said no, and its worker was gone before it could say why")),
            (3, ("failed", "lost", NOBODY_KNOWS)),
        ],
    )
    def test_a_driver_that_ended_by_itself_while_nobody_reads_is_told_by_its_exit_code(
        self, start, running, sql, tmp_path, code, told
    ):
        supervisor = fill(start, tmp_path, code, running)
        supervisor.say({"lease_end": now()})
        supervisor.process.wait()
        assert self.state(sql, running) == told

    def test_a_worker_that_reads_late_but_within_its_lease_is_waited_for(self, start, running, sql, tmp_path):
        supervisor = fill(start, tmp_path, 0, running)
        supervisor.say({"lease_end": now() + LONG})
        supervisor.heard()
        assert ended(supervisor) == ("exit", 0)
        assert self.state(sql, running) == ("running", None, None)

    def test_a_job_that_is_somebody_elses_by_now_is_left_alone(self, start, running, sql):
        stale = running | {"token": str(uuid4())}
        supervisor = start(TICK, report=stale)
        up(supervisor)
        supervisor.hang_up()
        supervisor.finish()
        assert self.state(sql, running) == ("running", None, None)
        assert sql("SELECT count(*) FROM audit_logs WHERE action = 'job.late_result'") == [(1,)]


def fill(start: Start, folder: Path, code: int, report: dict[str, Any]) -> Program:
    """A supervisor whose driver has filled the pipe to the last page and ended with this code; nobody reads."""
    door = folder / "door"
    os.mkfifo(door)
    fill_it = f"""
open({str(door)!r}).read()
os.set_blocking(1, False)
try:
    while True: os.write(1, b"\\n" * 4096)
except BlockingIOError:
    os.set_blocking(1, True)
os._exit({code})"""
    supervisor = start(fill_it, report=report, before="supervisor.TELL_SECONDS = 0")
    driver = up(supervisor)
    door.write_text("")
    gone(driver)
    return supervisor
