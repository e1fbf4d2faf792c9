"""A driver is dead before its lease ends, with everything it started; and what nobody else can tell is recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tasks.drivers import PROGRAMS
from tasks.supervisor import now
from tests.tasks.conftest import LONG, UP, gone, python
from tests.tasks.supervised import STUBBORN, TICK, dead, ended, family, pids, up


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


def test_the_programs_of_all_drivers_exist():
    for name, argv in PROGRAMS.items():
        done = subprocess.run(
            [*argv], input="", capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
        )
        assert done.returncode == 1, name
        assert "No module named" not in done.stderr
