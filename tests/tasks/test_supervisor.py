"""A driver is dead before its lease ends, with everything it started; and what nobody else can tell is recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest

from db.ledger import Ledger
from db.settings import libpq_conninfo
from tasks.drivers import PROGRAMS
from tasks.supervisor import now
from tests.conftest import SCHEMA, Database
from tests.tasks.conftest import LONG, Program, gone, python

#: A driver that says "up" and its pid, and then runs a line of Python.
UP = """
import json, os, signal, subprocess, sys, time
def tell(**event): os.write(1, json.dumps(event).encode() + b"\\n")
def say(text): tell(event="log", stream="stdout", text=str(text))
def end(outcome): tell(event="end", outcome=outcome, message="")
plan = json.loads(sys.stdin.readline())
say(f"up {os.getpid()}")
"""
TICK = "\nwhile True:\n    say('tick')\n    time.sleep(0.02)"
#: A child that ignores TERM, and so does its child.
STUBBORN = "trap '' TERM HUP; (while :; do sleep 1; done) & echo $! >&2; while :; do sleep 1; done"

NOBODY_KNOWS = "the driver ended without a result (exit code 3); nobody can know whether it took effect"

Start = Callable[..., Program]


@pytest.fixture
def start(program) -> Start:
    """Start a supervisor and, unless `order` is False, give it the order."""

    def begin(driver: str | list[str] = "", *, before: str = "", order: bool = True, **ends: Any) -> Program:
        code = f"from tasks import supervisor\n{before}\nsupervisor.main()"
        supervisor = program(python(code))
        supervisor.order = {
            "argv": driver if isinstance(driver, list) else python(UP + driver), "plan": {},
            "lease_end": now() + LONG, "timeout_end": now() + LONG, "grace": LONG, "report": {},
        } | ends  # fmt: skip
        if order:
            supervisor.say({"start": supervisor.order})
        return supervisor

    return begin


def up(supervisor: Program) -> int:
    """Wait until the driver is up; its pid."""
    return int(supervisor.until("log", "up ")["text"].split()[1])


def ended(supervisor: Program) -> tuple[str, int | None]:
    """Why it ended and with what exit code: always the last event, and said once."""
    *_, last = supervisor.finish()
    assert last["event"] == "ended"
    assert [event["event"] for event in supervisor.seen].count("ended") == 1
    return last["why"], last["code"]


def dead(*pids: int) -> None:
    for pid in pids:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def family(line: str) -> str:
    """Python that starts a shell line in the driver's group, says the pids of it and of its child, and waits."""
    return f"""
child = subprocess.Popen(["/bin/sh", "-c", {line!r}], stderr=subprocess.PIPE)
say(f"pids {{child.pid}} {{child.stderr.readline().decode()}}")
child.wait()"""


def pids(supervisor: Program) -> list[int]:
    return [int(each) for each in supervisor.until("log", "pids ")["text"].split()[1:]]


def test_the_plan_reaches_the_driver_and_its_events_come_through(start):
    supervisor = start("say(plan['a']); end('ok')", plan={"a": "b"})
    assert ended(supervisor) == ("exit", 0)
    assert [event["event"] for event in supervisor.seen] == ["started", "log", "log", "end", "ended"]
    assert supervisor.seen[0]["pid"] == int(supervisor.seen[1]["text"].split()[1])
    assert supervisor.seen[2]["text"] == "b"


def test_a_plan_of_several_megabytes_reaches_a_driver_that_takes_its_time(start, tmp_path):
    door = tmp_path / "door"
    os.mkfifo(door)
    slow = f"import sys; open({str(door)!r}).read()\n{UP}\nsay(len(plan['a']))"
    supervisor = start(python(slow), plan={"a": "x" * 5_000_000})
    supervisor.until("started")
    door.write_text("")
    supervisor.until("log", "5000000")
    assert ended(supervisor) == ("exit", 0)


def test_a_driver_that_reads_no_plan_holds_nobody(start):
    supervisor = start(python("import os; os.close(0)"), plan={"a": "x" * 5_000_000})
    assert ended(supervisor) == ("exit", 0)


@pytest.mark.parametrize(("line", "code"), [("sys.exit(1)", 1), ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_the_exit_code_of_the_driver_is_told(start, line, code):
    assert ended(start(line)) == ("exit", code)


def test_a_driver_has_none_of_the_platforms_environment(start):
    supervisor = start("say(json.dumps(dict(os.environ)))", before="import os; os.environ['KEPT'] = 'yes'")
    ended(supervisor)
    environment = json.loads(supervisor.seen[2]["text"])
    assert set(environment) <= {"PATH", "PYTHONPATH", "KEPT", "LC_CTYPE"}


def test_a_stop_asks_with_term_and_ends_with_kill_the_whole_group(start):
    supervisor = start("signal.signal(signal.SIGTERM, lambda *_: say('asked'))" + family(STUBBORN), grace=0.2)
    driver = up(supervisor)
    children = pids(supervisor)
    supervisor.say({"stop": "cancelled"})
    assert ended(supervisor) == ("cancelled", -9)
    assert "asked" in supervisor.output()
    dead(driver, *children)


def test_what_a_stopped_driver_left_in_its_group_is_dead_when_the_end_is_told(start):
    supervisor = start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))" + family(STUBBORN))
    up(supervisor)
    children = pids(supervisor)
    supervisor.say({"stop": "interrupted"})
    assert ended(supervisor) == ("interrupted", 1)
    dead(*children)


def test_what_a_crashed_driver_left_in_its_group_is_dead_when_the_end_is_told(start):
    line = family(STUBBORN).replace("child.wait()", "os._exit(3)")
    supervisor = start(line)
    children = pids(supervisor)
    assert ended(supervisor) == ("exit", 3)
    dead(*children)


def test_what_a_driver_that_ended_well_left_running_runs_on(start):
    line = family("echo $$ >&2; exec sleep 600").replace("child.wait()", "end('ok'); os._exit(0)")
    supervisor = start(line.replace("stderr=subprocess.PIPE", "stderr=subprocess.PIPE, stdout=subprocess.DEVNULL"))
    (pid, _) = pids(supervisor)
    assert ended(supervisor) == ("exit", 0)
    os.kill(pid, signal.SIGKILL)


def test_the_first_reason_to_stop_counts(start):
    supervisor = start(
        "told = []\nsignal.signal(signal.SIGTERM, lambda *_: (told.append(1), say('asked')))\n"
        "say('ready')\nwhile len(told) < 2: time.sleep(0.01)",
        grace=0.5,
    )
    supervisor.until("log", "ready")
    supervisor.say({"stop": "cancelled"})
    supervisor.until("log", "asked")
    supervisor.say({"stop": "interrupted"})
    assert ended(supervisor) == ("cancelled", -9)


def test_who_lost_the_lease_gets_no_grace(start):
    supervisor = start("signal.signal(signal.SIGTERM, lambda *_: say('asked'))" + TICK)
    supervisor.until("log", "tick")
    supervisor.say({"stop": "lost"})
    assert ended(supervisor) == ("lost", -9)
    assert "asked" not in supervisor.output()


def test_the_timeout_stops_the_driver(start):
    assert ended(start(TICK, timeout_end=now() + 0.3)) == ("timeout", -15)


def test_success_in_the_last_moment_is_told_beside_the_stop(start):
    supervisor = start("signal.signal(signal.SIGTERM, lambda *_: (end('ok'), os._exit(0)))" + TICK)
    supervisor.until("log", "tick")
    supervisor.say({"stop": "cancelled"})
    assert ended(supervisor) == ("cancelled", 0)
    assert supervisor.seen[-2] == {"event": "end", "outcome": "ok", "message": ""}


class TestLease:
    """Ends are points on a clock that all processes of a machine share."""

    def test_the_driver_is_dead_before_the_lease_ends(self, start):
        # The margin is what a kill may take on a busy machine; here it is large, so that the test may be slow.
        supervisor = start(TICK, before="supervisor.MARGIN = 29; supervisor.REPORT_SECONDS = 0")
        driver = up(supervisor)
        end = now() + 29.2
        supervisor.say({"lease_end": end})
        assert ended(supervisor) == ("lease ran out", -9)
        dead(driver)
        assert now() < end

    def test_a_renewal_extends_it(self, start):
        end = now() + 1.0
        supervisor = start(TICK, lease_end=end)
        supervisor.say({"lease_end": now() + LONG})
        while now() < end + 0.1:
            supervisor.until("log", "tick")
        supervisor.say({"stop": "cancelled"})
        assert ended(supervisor) == ("cancelled", -15)

    def test_a_renewal_that_a_stopped_worker_sends_late_extends_nothing(self, start):
        supervisor = start(TICK, before="supervisor.REPORT_SECONDS = 0")
        driver = up(supervisor)
        os.kill(supervisor.pid, signal.SIGSTOP)
        supervisor.say({"lease_end": now() - 1})  # counted from before the worker was stopped
        os.kill(supervisor.pid, signal.SIGCONT)
        assert ended(supervisor) == ("lease ran out", -9)
        dead(driver)

    def test_a_supervisor_that_was_stopped_itself_takes_a_renewal_in_before_it_looks_at_its_clock(self, start):
        supervisor = start(TICK)
        up(supervisor)
        end = now() + 0.8
        supervisor.say({"lease_end": end})
        supervisor.heard()
        os.kill(supervisor.pid, signal.SIGSTOP)
        supervisor.say({"lease_end": now() + LONG})
        while now() < end + 0.1:
            supervisor.until("log", "tick")
        os.kill(supervisor.pid, signal.SIGCONT)
        for _ in range(3):
            supervisor.until("log", "tick")
        supervisor.say({"stop": "cancelled"})
        assert ended(supervisor) == ("cancelled", -15)

    def test_nothing_is_started_after_its_end(self, start, tmp_path):
        supervisor = start(f"open({str(tmp_path / 'effect')!r}, 'w')", lease_end=now() + 0.1)
        assert ended(supervisor) == ("not started", None)
        assert supervisor.seen[:-1] == []
        assert not (tmp_path / "effect").exists()


def test_a_driver_that_cannot_start_is_told_as_that(start):
    supervisor = start(["/nowhere/driver"])
    assert ended(supervisor) == ("cannot start", None)


def test_a_worker_that_dies_before_the_order_leaves_nothing(start):
    supervisor = start(order=False)
    supervisor.hang_up()
    assert supervisor.finish() == []
    assert supervisor.process.returncode == 0


def test_messages_before_the_order_are_no_order(start):
    supervisor = start("end('ok')", order=False)
    supervisor.say({"lease_end": now() + 1})
    supervisor.say({"start": supervisor.order})
    assert ended(supervisor) == ("exit", 0)


def test_half_a_line_of_a_killed_driver_does_not_swallow_the_end(start):
    supervisor = start(
        "os.write(1, b'{\"event\": \"log\", \"te'); say('x'); os.write(1, b'half')" + TICK.replace("say('tick')", "0")
    )
    up(supervisor)
    supervisor.say({"stop": "cancelled"})
    assert ended(supervisor) == ("cancelled", -15)


def test_signals_to_a_workers_terminal_are_not_for_the_supervisor(start):
    supervisor = start(TICK)
    up(supervisor)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(supervisor.pid, each)
    for _ in range(3):
        supervisor.until("log", "tick")
    supervisor.say({"stop": "cancelled"})
    assert ended(supervisor) == ("cancelled", -15)


def test_a_killed_supervisor_takes_its_driver_along(start):
    supervisor = start(TICK)
    driver = up(supervisor)
    supervisor.process.kill()
    supervisor.finish()
    gone(driver)


def test_a_killed_supervisor_takes_along_what_the_command_driver_runs(start, tmp_path):
    """Also where the worker is dead as well, and nobody is left to kill the group."""
    plan = {
        "argv": ["/bin/sh", "-c", STUBBORN.replace("echo $!", "echo pids $$ $!")],
        "environment": {"PATH": os.environ["PATH"]},
    }
    supervisor = start(PROGRAMS["command"], plan=plan)
    children = pids(supervisor)
    assert len(children) == 2
    supervisor.process.kill()
    gone(*children)


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


def test_the_programs_of_all_drivers_exist():
    for name, argv in PROGRAMS.items():
        done = subprocess.run(
            [*argv], input="", capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
        )
        assert done.returncode == 1, name
        assert "No module named" not in done.stderr
