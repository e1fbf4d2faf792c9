"""Programs that are run for real, and what they say."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tasks
from tasks.supervisor import now

ROOT = str(Path(tasks.__file__).parent.parent)
#: Longer than any test takes: what this limits must end for another reason.
LONG = 60.0
#: A driver that says "up" and its pid, and then runs a line of Python.
UP = """
import json, os, signal, subprocess, sys, time
def tell(**event): os.write(1, json.dumps(event).encode() + b"\\n")
def say(text): tell(event="log", stream="stdout", text=str(text))
def end(outcome): tell(event="end", outcome=outcome, message="")
plan = json.loads(sys.stdin.readline())
say(f"up {os.getpid()}")
"""


class Program:
    """A running program whose stdout is events: one JSON object a line."""

    def __init__(self, argv: list[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": ROOT, "PATH": os.environ["PATH"]} | environment,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        self.seen: list[dict[str, Any]] = []
        self._buffer = b""
        self._lines: list[bytes] = []

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[self.process.stdin.write(data) :]

    def heard(self) -> None:
        """Wait until everything said has been read; nothing tells of that, so it is asked for."""
        unread = array.array("i", [1])
        while unread[0]:
            fcntl.ioctl(self.process.stdin.fileno(), termios.FIONREAD, unread)

    def hang_up(self) -> None:
        self.process.stdin.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """The events as they come, until nobody holds the other end of the pipe."""
        while True:
            while self._lines:  # whoever stopped at one of them goes on with the next
                event = _parsed(self._lines.pop(0))
                if event is not None:
                    self.seen.append(event)
                    yield event
            if not (data := os.read(self.process.stdout.fileno(), 65536)):
                return
            *self._lines, self._buffer = (self._buffer + data).split(b"\n")

    def until(self, kind: str, text: str = "") -> dict[str, Any]:
        """Wait for an event of this kind whose text has this in it."""
        for event in self.events():
            if event["event"] == kind and text in str(event.get("text", "")):
                return event
        raise AssertionError(f"{kind} {text!r} never came: {self.seen}")

    def finish(self) -> list[dict[str, Any]]:
        """Everything said until the program has ended."""
        for _ in self.events():
            pass
        self.process.wait()
        return self.seen

    def output(self, stream: str = "stdout") -> str:
        return "".join(e["text"] for e in self.seen if e["event"] == "log" and e["stream"] == stream)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


@pytest.fixture
def program() -> Iterator[type[Program]]:
    """Starts programs; those still running at the end are killed."""
    started: list[Program] = []

    class Tracked(Program):
        def __init__(self, argv: list[str], **environment: str) -> None:
            super().__init__(argv, **environment)
            started.append(self)

    yield Tracked
    for each in started:
        each.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def gone(*pids: int) -> None:
    """Wait until these processes have ended."""
    for pid in pids:
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        select.select([watched], [], [])
        os.close(watched)


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
