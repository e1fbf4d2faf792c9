"""A command is run as it was said, its output passed on as it comes, and its end told truthfully."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.drivers import PROGRAMS
from tasks.drivers.command import MAX_PIECE_BYTES
from tests.tasks.conftest import Program, gone
from tests.tasks.test_http import serving

Drive = Callable[..., Program]
GATE = {"interval_seconds": 0.05, "timeout_seconds": 60, "attempts": 3}


@pytest.fixture
def drive(program) -> Drive:
    """Start the driver with a plan; words are an argv, a string is a line for a shell."""

    def start(command: str | list[str], **plan: Any) -> Program:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        driver = program(PROGRAMS["command"], DATABASE_URL="postgresql://leak", ENCRYPTION_KEY="leak", OPS_X="leak")
        driver.say(
            {"argv": argv, "cwd": None, "environment": {}, "health": None, "promote": None, "abort": None} | plan
        )
        return driver

    return start


def end_of(driver: Program) -> tuple[str, str, int]:
    """How it went, in its own words: the outcome, the message, the exit code."""
    *_, last = driver.finish()
    assert last["event"] == "end"
    assert [event["event"] for event in driver.seen].count("end") == 1
    return last["outcome"], last["message"], driver.process.returncode


def failed(driver: Program) -> str:
    outcome, message, code = end_of(driver)
    assert (outcome, code) == ("failed", 1)
    assert "\n" not in message
    return message


def test_both_streams_are_passed_on_in_order(drive):
    driver = drive("for n in 1 2 3; do echo out $n; echo err $n >&2; done")
    assert end_of(driver) == ("ok", "", 0)
    assert driver.output("stdout") == "out 1\nout 2\nout 3\n"
    assert driver.output("stderr") == "err 1\nerr 2\nerr 3\n"


def test_a_line_is_there_while_the_command_runs_on_also_an_unfinished_one(drive, tmp_path):
    door = tmp_path / "door"
    os.mkfifo(door)
    driver = drive(f"echo whole; printf 'half '; cat '{door}'")
    driver.until("log", "whole")
    driver.until("log", "half ")
    door.write_text("the rest")
    assert end_of(driver)[0] == "ok"
    assert driver.output() == "whole\nhalf the rest"


def test_a_long_line_comes_in_pieces_of_a_bounded_size(drive):
    driver = drive(["/usr/bin/head", "-c", "1000000", "/dev/zero"])
    assert end_of(driver)[0] == "ok"
    assert driver.output() == "\0" * 1_000_000
    assert max(len(event.get("text", "")) for event in driver.seen) <= 2 * MAX_PIECE_BYTES


def test_no_character_is_cut_in_two(drive, tmp_path):
    text = "x" + "\N{EURO SIGN}" * 100_000 + "\N{PARTY POPPER}\n"
    (tmp_path / "text").write_text(text)
    driver = drive(["/bin/cat", str(tmp_path / "text")])
    assert end_of(driver)[0] == "ok"
    assert driver.output() == text


def test_what_is_no_text_is_shown_as_such(drive):
    driver = drive(r"printf 'a\377\376b\n\303'")
    assert end_of(driver)[0] == "ok"
    assert driver.output() == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b\n\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("exit 3", "command exited with 3"),
        ("exit 255", "command exited with 255"),
        ("kill -9 $$", "command was ended by SIGKILL"),
        (["/nowhere/program"], "command cannot start: No such file or directory"),
        (["/etc/passwd"], "command cannot start: Permission denied"),
        (["a\0b"], "command cannot start: embedded null byte"),
        (["/bin/echo", "x" * 3_000_000], "command cannot start: Argument list too long"),
    ],
)
def test_the_end_of_a_command_is_told_in_one_line(drive, command, message):
    assert failed(drive(command)) == message


def test_a_missing_folder_is_named_in_the_log_and_not_in_the_message(drive):
    driver = drive("true", cwd="/nowhere/at/all")
    assert failed(driver) == "command cannot start: No such file or directory"
    assert driver.output("platform") == "command: No such file or directory: /nowhere/at/all\n"


def test_a_missing_program_of_the_folder_is_named_with_the_folder(drive, tmp_path):
    driver = drive(["./deploy.sh"], cwd=str(tmp_path))
    assert failed(driver) == "command cannot start: No such file or directory"
    assert driver.output("platform") == f"command: No such file or directory: ./deploy.sh, from {tmp_path}\n"


def test_an_argv_is_no_shell_line(drive):
    words = ["$HOME", "`id`", "a b", ";", "&&", "*", "", "\N{SNOWMAN}", "'"]
    driver = drive(["/usr/bin/printf", "%s\\n", *words])
    assert end_of(driver)[0] == "ok"
    assert driver.output().splitlines() == words


def test_a_command_has_exactly_the_environment_and_the_folder_of_its_plan(drive, tmp_path):
    environment = {"A": "one\ntwo", "EMPTY": "", "OPS_VERSION": "v1"}
    driver = drive(["/usr/bin/env", "-0"], environment=environment)
    assert end_of(driver)[0] == "ok"
    assert dict(each.split("=", 1) for each in driver.output().split("\0") if each) == environment
    driver = drive(["/bin/pwd"], cwd=str(tmp_path))
    assert end_of(driver)[0] == "ok"
    assert Path(driver.output().strip()) == tmp_path.resolve()


def test_a_command_reads_nothing(drive):
    assert end_of(drive('test -z "$(cat)"'))[0] == "ok"


def test_the_gate_passes_at_the_first_good_answer_and_then_promotes(drive):
    answers = iter([b"503 Busy", b"500 No", b"204 Good"])

    def serve(connection, _request):
        connection.sendall(b"HTTP/1.1 " + next(answers) + b"\r\nContent-Length: 0\r\n\r\n")

    with serving(serve) as server:
        driver = drive(
            "echo deployed", health=GATE | {"url": f"{server.url}/healthz"}, promote=["/bin/echo", "promoted"],
            abort=["/bin/echo", "aborted"],
        )  # fmt: skip
        assert end_of(driver) == ("ok", "", 0)
        assert len(server.requests) == 3
        assert driver.output("platform") == f"healthy: {server.url}/healthz answered 204 (attempt 3 of 3)\n"
    assert driver.output() == "deployed\npromoted\n"


@pytest.mark.parametrize("status", [b"503 Busy", b"302 Found", b"404 No"])
def test_the_gate_refuses_after_its_attempts_promotes_nothing_and_aborts(drive, status):
    with serving(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n") as server:
        driver = drive(
            "true", health=GATE | {"url": f"{server.url}/?token=hidden"}, promote=["/bin/echo", "promoted"],
            abort=["/bin/echo", "aborted"],
        )  # fmt: skip
        message = failed(driver)
        assert message == f"not healthy after 3 attempts: it answered {status[:3].decode()}"
        assert len(server.requests) == 3
    assert driver.output() == "aborted\n"
    assert "hidden" in driver.output("platform")  # in the deployment's own log only


def test_a_gate_that_nobody_answers_says_so(drive):
    message = failed(drive("true", health=GATE | {"url": "http://127.0.0.1:1/", "attempts": 2}))
    assert message == "not healthy after 2 attempts: connection refused"


def test_each_failing_step_is_named(drive):
    assert failed(drive("true", promote=["/bin/false"])) == "promote exited with 1"
    assert failed(drive("exit 2", abort=["/bin/sh", "-c", "exit 4"])) == (
        "command exited with 2; then abort failed: abort exited with 4"
    )
    driver = drive("exit 2", promote=["/bin/echo", "promoted"], abort=["/bin/echo", "aborted"])
    assert failed(driver) == "command exited with 2"
    assert driver.output() == "aborted\n"


def test_a_stop_ends_the_command_and_starts_nothing_more(drive):
    driver = drive("echo up; exec sleep 600", promote=["/bin/echo", "promoted"], abort=["/bin/echo", "aborted"])
    driver.until("log", "up")
    os.killpg(driver.pid, signal.SIGTERM)
    assert failed(driver) == "command was ended by SIGTERM"
    assert driver.output() == "up\n"


def test_a_stop_ends_a_gate_that_waits_at_once(drive):
    with serving(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as server:
        driver = drive(
            "true", health=GATE | {"url": server.url, "interval_seconds": 3600}, abort=["/bin/echo", "aborted"]
        )
        server.hung_up.wait()
        os.killpg(driver.pid, signal.SIGTERM)
        assert failed(driver) == "stopped while waiting for health"
    assert driver.output() == ""


def test_a_stop_ends_a_gate_that_is_asking_at_once(drive):
    with serving(lambda connection, _: connection.recv(1)) as server:
        driver = drive("true", health=GATE | {"url": server.url, "timeout_seconds": 3600})
        server.asked.wait()
        os.killpg(driver.pid, signal.SIGTERM)
        assert failed(driver) == "stopped while waiting for health"


def test_a_daemon_that_keeps_the_pipes_open_does_not_hold_the_deployment(drive):
    driver = drive("(while :; do echo still; sleep 600; done) & echo $!; echo down")
    assert end_of(driver) == ("ok", "", 0)
    printed = driver.output().splitlines()
    assert "down" in printed
    pid = int(next(line for line in printed if line.isdigit()))
    os.kill(pid, 0)  # what is to outlive the deployment does
    os.killpg(driver.pid, signal.SIGKILL)
    gone(pid)


def test_a_command_that_closes_its_pipes_is_waited_for(drive, tmp_path):
    door = tmp_path / "door"
    os.mkfifo(door)
    driver = drive(f"echo up; exec >&- 2>&-; read _ < '{door}'; exit 5")
    driver.until("log", "up")
    door.write_text("on\n")
    assert failed(driver) == "command exited with 5"


def test_when_nobody_listens_any_more_the_driver_ends(drive):
    driver = drive("echo up; while :; do echo more; done")
    driver.until("log", "up")
    driver.process.stdout.close()
    assert driver.process.wait() == 1


def test_every_event_is_one_line_of_plain_ascii(drive):
    driver = drive(["/usr/bin/printf", "\N{PARTY POPPER}\\r\\n\\033[31m\\n"])
    end_of(driver)
    for event in driver.seen:
        assert json.dumps(event).isascii()
    assert driver.output() == "\N{PARTY POPPER}\r\n\x1b[31m\n"
