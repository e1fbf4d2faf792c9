"""The worker's side: it hears what the driver says, whatever that is, and nothing of it is alive afterwards."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import effect as effects
from tasks.drivers import PROGRAMS
from tasks.effect import Effect, base_environment
from tasks.supervisor import now
from tests.tasks.conftest import LONG, gone, python
from tests.tasks.test_supervisor import STUBBORN, TICK, UP, family

Events = list[dict[str, Any]]


class Run:
    """One effect and what was heard of it."""

    def __init__(self, driver: str | list[str], **ends: Any) -> None:
        self.effect = Effect()
        self.seen: Events = []
        self.driver = driver if isinstance(driver, list) else python(UP + driver)
        self.ends = {"lease_end": now() + LONG, "timeout_end": now() + LONG, "grace": LONG, "report": {}} | ends
        self._events = self.effect.events(0.05)

    def start(self, plan: dict[str, Any] | None = None) -> Run:
        self.effect.start(self.driver, plan or {}, **self.ends)
        return self

    def until(self, text: str) -> str:
        for event in self._events:
            if event is not None:
                self.seen.append(event)
                if text in str(event.get("text", "")):
                    return str(event["text"])
        raise AssertionError(f"{text!r} never came: {self.seen}")

    def finish(self) -> dict[str, Any]:
        """How it ended, as the last event tells."""
        self.seen += [event for event in self._events if event is not None]
        assert [event["event"] for event in self.seen].count("ended") == 1
        return {name: self.seen[-1][name] for name in ("event", "why", "code")}


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def begin(driver: str | list[str], **ends: Any) -> Run:
        made.append(Run(driver, **ends))
        return made[-1]

    yield begin
    for each in made:
        each.effect.__exit__()


def last(why: str, code: int | None) -> dict[str, Any]:
    return {"event": "ended", "why": why, "code": code}


def pids_of(text: str) -> list[int]:
    return [int(each) for each in text.split()[1:]]


def test_events_come_in_order_and_the_end_comes_last(run):
    heard = run("say('one'); say('two'); end('ok')").start()
    assert heard.finish() == last("exit", 0)
    assert [event["event"] for event in heard.seen] == ["started", "log", "log", "log", "end", "ended"]


def test_nothing_is_heard_at_least_every_tick(run):
    heard = run(TICK.replace("say('tick')", "0")).start()
    heard.until("up")
    assert next(heard._events) is None
    assert next(heard._events) is None
    heard.effect.stop("cancelled")
    assert heard.finish() == last("cancelled", -15)


def test_nothing_of_the_platforms_secrets_reaches_a_driver(run, monkeypatch):
    hidden = "hunter2-do-not-show"
    for name in ("DATABASE_URL", "ENCRYPTION_KEY", "SECRET_KEY", "OPS_BROKER_URL", "PGPASSWORD", "AWS_SECRET"):
        monkeypatch.setenv(name, hidden)
    heard = run("say(json.dumps(dict(os.environ)))\nsys.stdin.close()\nos.kill(os.getpid(), signal.SIGSTOP)").start()
    environment = json.loads(heard.until('"PATH"'))
    assert set(environment) <= {*effects.PASSED_ON, "PYTHONPATH", "LC_CTYPE"}
    for pid in (heard.effect.pid, heard.effect._driver):
        for shown in ("environ", "cmdline"):
            assert hidden not in Path(f"/proc/{pid}/{shown}").read_text(errors="replace")
    heard.effect.stop("lost")
    heard.finish()


def test_what_is_passed_on_is_what_programs_need_to_run(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("OPS_ANYTHING", "x")
    assert base_environment()["LC_ALL"] == "C.UTF-8"
    assert set(base_environment()) <= set(effects.PASSED_ON)


def test_a_plan_with_secrets_is_on_no_command_line(run):
    heard = run("say(plan['secret'])\nsys.stdin.close()\nos.kill(os.getpid(), signal.SIGSTOP)")
    heard.start({"secret": "hunter2"})
    heard.until("hunter2")
    for process in [psutil.Process(heard.effect.pid), *psutil.Process(heard.effect.pid).children(recursive=True)]:
        assert "hunter2" not in " ".join(process.cmdline()) + str(process.environ())
    heard.effect.stop("lost")
    heard.finish()


def test_a_plan_of_several_megabytes_arrives(run):
    heard = run("say(len(plan['a']))").start({"a": "x" * 8_000_000})
    heard.until("8000000")
    assert heard.finish() == last("exit", 0)


NONSENSE = [
    b"nonsense", b"", b"\0\xff\xfe", b"{", b"[]", b"7", b'"event"', b"null", b'{"event": 7}', b'{"no": "event"}',
    b"[" * 100_000, b'{"event": "log", "text":', b'{"event": "started", "pid": "x"}', b'{"event": "started", "pid": 1}',
]  # fmt: skip


def test_a_driver_that_prints_nonsense_is_heard_through_it(run):
    heard = run(f"for line in {NONSENSE!r}: os.write(1, line + b'\\n')\nsay('sense'); end('ok')").start()
    heard.until("sense")
    assert heard.finish() == last("exit", 0)
    assert heard.effect._driver == heard.seen[0]["pid"]


def test_a_line_of_ten_megabytes_is_dropped_and_no_part_of_it_taken_for_an_event(run):
    forged = '{"event": "log", "text": "forged"}'
    heard = run(f"""
data = b"x" * 10_000_000 + {forged!r}.encode() + b"\\n"
while data: data = data[os.write(1, data):]
say("after"); end("ok")""").start()
    heard.until("after")
    assert heard.finish() == last("exit", 0)
    assert not [event for event in heard.seen if event.get("text") == "forged"]


def test_a_renewal_and_a_stop_reach_the_driver_from_any_thread(run):
    heard = run(TICK, lease_end=now() + 1.0).start()
    heard.effect.renew(now() + LONG)
    heard.until("tick")
    heard.effect.stop("timeout")
    assert heard.finish() == last("timeout", -15)


def test_a_killed_supervisor_is_told_as_that_and_its_driver_is_dead(run):
    heard = run(family(STUBBORN)).start()
    driver = int(heard.until("up ").split()[1])
    children = pids_of(heard.until("pids "))
    os.kill(heard.effect.pid, signal.SIGKILL)
    assert heard.finish() == last("supervisor died", None)
    gone(driver, *children)


def test_a_killed_supervisor_with_the_command_driver_leaves_nothing(run):
    plan = {
        "argv": ["/bin/sh", "-c", STUBBORN.replace("echo $!", "echo pids $$ $!")],
        "environment": base_environment(),
    }
    heard = run(PROGRAMS["command"]).start(plan)
    children = pids_of(heard.until("pids "))
    os.kill(heard.effect.pid, signal.SIGKILL)
    assert heard.finish() == last("supervisor died", None)
    gone(*children)


def test_a_daemon_that_keeps_the_pipe_open_does_not_hold_the_worker(run):
    heard = run("""
daemon = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
say(f"pids {daemon.pid}"); end("ok"); os._exit(0)""").start()
    (daemon,) = pids_of(heard.until("pids "))
    assert heard.finish() == last("exit", 0)
    os.kill(daemon, signal.SIGKILL)


def test_a_driver_that_cannot_start_is_an_end_like_others(run):
    assert run(["/nowhere"]).start().finish() == last("cannot start", None)


def test_an_effect_that_is_left_before_its_start_leaves_nothing():
    with Effect() as effect:
        pid = effect.pid
    assert not psutil.pid_exists(pid)


def test_an_effect_that_is_left_in_the_middle_is_dead_with_all_it_started(run):
    heard = run(family(STUBBORN)).start()
    children = pids_of(heard.until("pids "))
    with pytest.raises(ZeroDivisionError), heard.effect:
        _ = 1 / 0
    gone(heard.effect._driver, *children)


def test_a_supervisor_that_is_stuck_is_killed_with_what_it_started(run, monkeypatch):
    monkeypatch.setattr(effects, "GONE_SECONDS", 0.2)
    heard = run(TICK).start()
    driver = int(heard.until("up ").split()[1])
    os.kill(heard.effect.pid, signal.SIGSTOP)
    heard.effect.__exit__()
    gone(driver)


def stopped(run, **ends: Any) -> tuple[Run, int]:
    """A run whose supervisor somebody has stopped, e.g. with a debugger; and its driver."""
    heard = run(TICK, **ends).start()
    driver = int(heard.until("up ").split()[1])
    os.kill(heard.effect.pid, signal.SIGSTOP)
    return heard, driver


def test_a_supervisor_that_is_stopped_fences_nothing_so_the_worker_does(run, monkeypatch):
    """The driver is dead before the next holder of its key may start."""
    monkeypatch.setattr(effects, "LATE_SECONDS", 0.2)
    heard, driver = stopped(run)
    heard.effect.renew(now() + 0.1)
    next(event for event in heard._events if psutil.Process(driver).status() == psutil.STATUS_ZOMBIE)
    os.kill(heard.effect.pid, signal.SIGCONT)
    assert heard.finish() == last("exit", -9)


def test_a_supervisor_that_is_stopped_and_does_not_come_back_is_killed(run, monkeypatch):
    monkeypatch.setattr(effects, "GONE_SECONDS", 0.5)
    monkeypatch.setattr(effects, "LATE_SECONDS", 0.2)
    heard, driver = stopped(run, grace=0.1)
    heard.effect.stop("cancelled")
    assert heard.finish() == last("supervisor died", None)
    gone(driver)


def test_telling_a_supervisor_that_is_gone_is_no_error(run):
    heard = run("end('ok')").start()
    heard.finish()
    heard.effect.renew(now() + 1)
    heard.effect.stop("cancelled")
