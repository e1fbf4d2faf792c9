"""Runs an application's own command on this host, then asks whether the application is healthy.

Plan::

    {"argv": [...], "cwd": "/srv/app", "environment": {...}, "health": {"url": ..., "interval_seconds": 1.0,
     "timeout_seconds": 2.0, "attempts": 30} or null, "promote": [...] or null, "abort": [...] or null}

Steps: the command; the health gate, which passes at the first good answer; then ``promote``, where given, switches
over to what has proved healthy. Where a step fails, ``abort`` cleans up. Each is an argv (no shell), gets exactly
this environment and no more, and runs in this process's own group, so that all of it can be ended together. A
program that shall outlive the deployment leaves the group by itself (``setsid``, a service manager).
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from tasks.drivers.events import emit, end, say

#: A line is passed on at its end, or when it has waited this long, or is this long.
FLUSH_SECONDS = 0.5
MAX_PIECE_BYTES = 64 * 1024
#: How long output may still come after the end of a command whose children keep its pipes open.
DRAIN_SECONDS = 0.5
STOPPED = "stopped while waiting for health"
_PR_SET_PDEATHSIG = 1


class StepFailed(Exception):
    """A step said no; the message tells a person why."""


@dataclass
class Driver:
    """One run of a plan."""

    plan: dict[str, Any]
    stopped: bool = False
    waiting: bool = False
    child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        try:
            self._command("command", self.plan["argv"])
            self._health_gate()
            if self.plan.get("promote"):
                self._command("promote", self.plan["promote"])
        except StepFailed as failure:
            message = str(failure)
            if self.plan.get("abort") and not self.stopped:
                message += self._abort()
            return end("failed", message)
        return end("ok")

    def _abort(self) -> str:
        try:
            self._command("abort", self.plan["abort"])
        except StepFailed as failure:
            return f"; then abort failed: {failure}"
        return ""

    def _command(self, step: str, argv: list[str]) -> None:
        if self.stopped:
            raise StepFailed("stopped")
        try:
            self.child = subprocess.Popen(
                argv,
                cwd=self.plan.get("cwd") or "/",
                env=self.plan["environment"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        except OSError as error:
            # Commands and addresses go into the deployment's own log, never into messages that travel further.
            path = str(error.filename)
            where = f", from {self.plan.get('cwd') or '/'}" if "/" in path and not path.startswith("/") else ""
            say(f"{step}: {error.strerror}: {path}{where}")
            raise StepFailed(f"{step} cannot start: {error.strerror}") from None
        except ValueError as error:
            raise StepFailed(f"{step} cannot start: {error}") from None
        self._pass_output_on(self.child)
        code = self.child.wait()
        if code < 0:
            raise StepFailed(f"{step} was ended by {_signal_name(-code)}")
        if code > 0:
            raise StepFailed(f"{step} exited with {code}")

    def _pass_output_on(self, child: subprocess.Popen[bytes]) -> None:
        """Until both pipes end, or the command has and what it left behind keeps them open."""
        drain_until: float | None = None
        with selectors.DefaultSelector() as ready:
            for stream, pipe in (("stdout", child.stdout), ("stderr", child.stderr)):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                ready.register(pipe, selectors.EVENT_READ, Lines(stream))
            while ready.get_map():
                for key, _ in ready.select(FLUSH_SECONDS if drain_until is None else 0.05):
                    data = key.fileobj.read(MAX_PIECE_BYTES)  # type: ignore[union-attr]
                    if data:
                        key.data.add(data)
                    elif data == b"":
                        key.data.flush(end=True)
                        ready.unregister(key.fileobj)
                for key in list(ready.get_map().values()):
                    key.data.flush_old()
                if drain_until is None and child.poll() is not None:
                    drain_until = time.monotonic() + DRAIN_SECONDS
                if drain_until is not None and time.monotonic() > drain_until:
                    break
            for key in list(ready.get_map().values()):
                key.data.flush(end=True)

    def _health_gate(self) -> None:
        gate = self.plan.get("health")
        if not gate:
            return
        self.waiting = True
        try:
            self._wait_for_health(gate)
        finally:
            self.waiting = False

    def _wait_for_health(self, gate: dict[str, Any]) -> None:
        from tasks import http

        attempts = int(gate["attempts"])
        reason = ""
        for attempt in range(1, attempts + 1):
            if self.stopped:
                raise StepFailed(STOPPED)
            try:
                answer = http.get(gate["url"], timeout=float(gate["timeout_seconds"]))
                if 200 <= answer.status < 300:
                    say(f"healthy: {gate['url']} answered {answer.status} (attempt {attempt} of {attempts})")
                    return
                reason = f"it answered {answer.status}"
            except http.HttpError as error:
                reason = str(error)
            if attempt < attempts:
                time.sleep(float(gate["interval_seconds"]))
        say(f"not healthy: {gate['url']}: {reason}")
        raise StepFailed(f"not healthy after {attempts} attempts: {reason}")


class Lines:
    """Cuts a byte stream into pieces of whole lines, without letting any wait for ever, and no character in two."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = b""
        self.since = time.monotonic()

    def add(self, data: bytes) -> None:
        if not self.rest:
            self.since = time.monotonic()
        whole, newline, self.rest = (self.rest + data).rpartition(b"\n")
        if newline:
            self._emit(whole + newline)
            self.since = time.monotonic()
        while len(self.rest) > MAX_PIECE_BYTES:
            self._emit(self.rest[:MAX_PIECE_BYTES])
            self.rest = self.rest[MAX_PIECE_BYTES:]

    def flush_old(self) -> None:
        if self.rest and time.monotonic() - self.since > FLUSH_SECONDS:
            self.flush()

    def flush(self, *, end: bool = False) -> None:
        self._emit(self.rest, end=end)
        self.rest = b""

    def _emit(self, data: bytes, *, end: bool = False) -> None:
        if text := self.decoder.decode(data, end):
            emit({"event": "log", "stream": self.stream, "text": text})


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def end_with_supervisor() -> None:
    """When the supervisor dies, the whole group dies, not this process alone: what it runs has an effect, too."""
    if os.getpgrp() != os.getpid():
        return  # run by hand
    signal.signal(signal.SIGHUP, lambda *_: os.killpg(0, signal.SIGKILL))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)


def main() -> int:
    driver = Driver(json.loads(sys.stdin.readline()))

    def stop(_number: int, _frame: object) -> None:
        # The whole group got the signal, so the command is ending as well: say how, then end.
        driver.stopped = True
        if driver.waiting:
            raise StepFailed(STOPPED)

    signal.signal(signal.SIGTERM, stop)
    end_with_supervisor()
    return driver.run()


if __name__ == "__main__":
    sys.exit(main())
