"""Supervisor of one driver: a small program between a worker and the effect it causes.

A heartbeat thread cannot fence an effect: SIGSTOP, the GIL or a long stall stop it together with the worker, and the
next holder of the lock starts while the old driver lives. This process counts the lease by itself, on a clock that
goes on while the machine sleeps, starts nothing after its end, and kills the driver's whole process group before the
lease can run out in the database, and at once when its pipe to the worker closes. What nobody else can tell any more
(the worker is dead, or stopped) it then reports to the database itself.

Spoken on stdin, one JSON object a line::

    {"start": {"argv": [...], "plan": {...}, "lease_end": 8123.5, "timeout_end": 9000.0, "grace": 5.0, "report": {...}}}
    {"lease_end": 8126.5}      a renewed lease, counted from before the renewal was asked for
    {"ack": 7}                 the driver's event 7 is stored: passed on to it, as is {"refuse": 7}
    {"stop": "cancelled"}      ask the group to end (TERM), and make it end after the grace (KILL)
    end of file                the worker died

Ends are points on :func:`now`'s clock, which all processes of a machine share: a message that a stopped worker sends
late extends nothing. The driver gets the plan as the first line of its stdin, which stays open for answers, and this
process's stdout as its own; every line on it is an event. Two are the supervisor's: ``{"event": "started", "pid": N}``
and, always the last, ``{"event": "ended", "why": ..., "code": N}`` with why one of ``exit``, ``cancelled``,
``timeout``, ``interrupted``, ``lease ran out``, ``worker died``, and, where no driver was started, ``not started`` (too
late) or ``cannot start``.

Standard library only, since it starts with every deployment; the database driver is loaded when it is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

#: Seconds before the end of the lease at which the group is killed: what a kill takes on a busy machine.
MARGIN = 0.5
#: How long to go on trying to tell the database, and how long at least the worker.
REPORT_SECONDS = 600.0
TELL_SECONDS = 2.0
#: Ends of which the worker cannot tell; the group has been killed outright.
FINAL = {
    "worker died": "the worker died; the driver was stopped in the middle",
    "lease ran out": "no heartbeat reached the database within the lease; the driver was stopped in the middle",
}
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def now() -> float:
    """Seconds on a clock that counts suspended time where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Supervisor:
    """One run: wait for the order, start the driver, watch three clocks and two pipes, report."""

    def __init__(self) -> None:
        self.buffer = b""
        self.inbox: list[dict[str, Any]] = []
        self.lease_end = 0.0
        self.timeout_end = 0.0
        self.kill_at: float | None = None
        self.grace = 5.0
        self.why: str | None = None
        self.report: dict[str, Any] = {}
        self.driver: subprocess.Popen[bytes] | None = None
        self.unwritten = bytearray()

    def run(self) -> int:
        order = self._wait_for_order()
        if order is None:
            return 0  # nothing was started, and whoever could have asked is gone
        self.lease_end = float(order["lease_end"]) - MARGIN
        self.timeout_end = float(order["timeout_end"])
        self.grace = float(order["grace"])
        self.report = order["report"]
        if select.select([0], [], [], 0)[0]:
            self._read()  # it may have died since
        if self.why is None and now() >= self.lease_end:
            self.why = "not started"
        if self.why is None:
            self._start(order["argv"], order["plan"])
        if self.driver is not None:
            self._watch()
        return self._end()

    def _wait_for_order(self) -> dict[str, Any] | None:
        while self.why is None:
            self._read()
            while self.inbox:
                if (order := self.inbox.pop(0).get("start")) is not None:
                    return dict(order)
        return None

    def _read(self) -> None:
        """Take in the messages that one read of stdin completes; note when the worker is gone."""
        data = os.read(0, 65536)
        if not data:
            self.why = "worker died"
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        self.inbox += [json.loads(line) for line in lines if line.strip()]

    def _start(self, argv: list[str], plan: dict[str, Any]) -> None:
        try:
            self.driver = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=1, stderr=2, start_new_session=True, preexec_fn=_become_driver
            )
        except (OSError, subprocess.SubprocessError):
            self.why = "cannot start"
            return
        # The first event of all: it fits into the pipe, so writing it waits for nobody.
        with contextlib.suppress(OSError):
            os.write(1, json.dumps({"event": "started", "pid": self.driver.pid}).encode() + b"\n")
        # A large plan would block on a full pipe while the clocks run: write as the driver reads.
        self.unwritten = bytearray(json.dumps(plan).encode() + b"\n")
        assert self.driver.stdin is not None
        os.set_blocking(self.driver.stdin.fileno(), False)

    def _watch(self) -> None:
        assert self.driver is not None
        with selectors.DefaultSelector() as ready:
            ready.register(0, selectors.EVENT_READ)
            dead = _notice_end_of(self.driver.pid, ready)
            self._obey()
            while self.driver.poll() is None:
                self._listen_for_room(ready)
                ready.select(self._seconds_left(poll=not dead))
                # The clock first, then the pipe: wherever this process is stopped in between, a renewal counts that
                # had come by then.
                looked_at = now()
                for key, _ in ready.select(0):
                    if key.fd == 0:
                        self._hear(ready)
                    elif key.fileobj is self.driver.stdin:
                        self._write()
                self._obey()
                self._mind_clocks(looked_at)
            if dead:
                os.close(dead)

    def _hear(self, ready: selectors.BaseSelector) -> None:
        why = self.why
        self._read()
        if self.why == "worker died":
            ready.unregister(0)
            if self._has_ended():
                self.why = why
            else:
                self._kill(signal.SIGKILL)

    def _has_ended(self) -> bool:
        """True when the driver ended by itself, so that whatever comes now has not ended it."""
        assert self.driver is not None
        return self.driver.poll() is not None

    def _obey(self) -> None:
        while self.inbox:
            message = self.inbox.pop(0)
            if "lease_end" in message:
                self.lease_end = float(message["lease_end"]) - MARGIN
            elif "stop" in message:
                self._stop(str(message["stop"]))
            elif "ack" in message or "refuse" in message:
                self.unwritten += json.dumps(message).encode() + b"\n"

    def _listen_for_room(self, ready: selectors.BaseSelector) -> None:
        """Wait for room in the driver's pipe only while there is something to write."""
        assert self.driver is not None
        assert self.driver.stdin is not None
        listens = self.driver.stdin in ready.get_map()
        if self.unwritten and not listens:
            ready.register(self.driver.stdin, selectors.EVENT_WRITE)
        elif listens and not self.unwritten:
            ready.unregister(self.driver.stdin)

    def _write(self) -> None:
        assert self.driver is not None
        assert self.driver.stdin is not None
        try:
            del self.unwritten[: os.write(self.driver.stdin.fileno(), self.unwritten[:65536])]
        except BlockingIOError:
            return
        except OSError:
            self.unwritten.clear()  # the driver reads no more; how it ends will tell

    def _seconds_left(self, *, poll: bool) -> float:
        ends = [self.lease_end, self.timeout_end if self.why is None else self.lease_end]
        if self.kill_at is not None:
            ends.append(self.kill_at)
        left = 1.0 if self.why in FINAL else max(0.0, min(ends) - now())
        return min(left, 0.05) if poll else left

    def _mind_clocks(self, at: float) -> None:
        if self.why in FINAL or self._has_ended():
            return
        if at >= self.lease_end:
            self.why = "lease ran out"
            self._kill(signal.SIGKILL)
        elif self.kill_at is not None and at >= self.kill_at:
            self.kill_at = None
            self._kill(signal.SIGKILL)
        elif self.why is None and at >= self.timeout_end:
            self._stop("timeout")

    def _stop(self, why: str) -> None:
        if self.why is None and not self._has_ended():
            self.why = why
            self.kill_at = now() + self.grace
            # Somebody else may hold the lock already: no grace then.
            self._kill(signal.SIGKILL if why == "lost" else signal.SIGTERM)

    def _kill(self, sig: signal.Signals) -> None:
        assert self.driver is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.driver.pid, sig)

    def _end(self) -> int:
        code = None
        if self.driver is not None:
            if self.why is not None or self.driver.returncode not in (0, 1):
                # What the driver left behind in its group must not outlive a stop or a crash.
                self._kill(signal.SIGKILL)
                wait_for_group(self.driver.pid)
            code = self.driver.wait()
        told = self._tell_worker({"event": "ended", "why": self.why or "exit", "code": code})
        if self.why in FINAL or not told:
            self._tell_database(*self._verdict(code))
        return 0

    def _tell_worker(self, event: dict[str, Any]) -> bool:
        """Write the last event; False when the worker is gone, or does not read it for as long as it has its lease.

        The pipe stays a blocking one, since the driver has the same; a line this short never blocks on a writable pipe.
        """
        # On a line of its own: a driver that was killed may have left half a line.
        line = b"\n" + json.dumps(event).encode() + b"\n"
        at_least = now() + TELL_SECONDS
        with selectors.DefaultSelector() as ready:
            ready.register(1, selectors.EVENT_WRITE)
            if self.why not in FINAL:
                ready.register(0, selectors.EVENT_READ)
            while (left := max(at_least, self.lease_end if self.why not in FINAL else 0.0) - now()) > 0:
                for key, _ in ready.select(left):
                    if key.fd == 0:
                        self._hear_renewals(ready)
                        continue
                    try:
                        return os.write(1, line) == len(line)
                    except OSError:
                        return False
        return False

    def _hear_renewals(self, ready: selectors.BaseSelector) -> None:
        why = self.why
        self._read()
        if self.why == "worker died":
            ready.unregister(0)  # then nobody reads what is written, either
            self.lease_end = 0.0
        self.why = why
        for message in self.inbox:
            self.lease_end = float(message.get("lease_end", self.lease_end + MARGIN)) - MARGIN
        self.inbox.clear()

    def _verdict(self, code: int | None) -> tuple[str, str | None]:
        """The outcome, and what there is to say of it: a driver's exit code says how it went."""
        if self.driver is None:
            return "interrupted", f"{self.why}; the driver was not started"
        if code == 0:
            return "ok", None
        if self.why is not None:
            outcome = self.why if self.why in ("cancelled", "timeout") else "interrupted"
            return outcome, FINAL.get(self.why, f"{self.why}; the driver was stopped in the middle")
        if code == 1:
            return "failed", "the driver said no, and its worker was gone before it could say why"
        return "lost", f"the driver ended without a result (exit code {code}); nobody can know whether it took effect"

    def _tell_database(self, outcome: str, error: str | None) -> None:
        """The worker cannot: record how the attempt ended. Guarded by its token, so saying it twice is safe."""
        from uuid import UUID

        from db.ledger import Ledger, until

        r = self.report
        end = now() + REPORT_SECONDS
        ledger = Ledger(r["conninfo"], r["schema"], application_name="ops supervisor", pooled=r.get("pooled", False))
        with contextlib.suppress(Exception):  # then the lease runs out in the database, and rescue speaks
            ledger.finish(
                UUID(r["job"]),
                r["attempt"],
                UUID(r["token"]),
                outcome,
                error=error,
                patience=until(lambda: now() > end),
            )


def _notice_end_of(pid: int, ready: selectors.BaseSelector) -> int | None:
    """Make the end of a process wake the selector; None where the kernel cannot."""
    try:
        end = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
    ready.register(end, selectors.EVENT_READ)
    return end


def wait_for_group(pgid: int, seconds: float = 5.0) -> None:
    """Wait until nobody of a killed process group is left; orphans of it are ours to reap."""
    until = now() + seconds
    while now() < until:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-pgid, os.WNOHANG)[0]:
                pass
        try:
            os.killpg(pgid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.005)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _become_driver() -> None:
    """In the child, before it becomes the driver: listen to signals again, and die with this process."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # only the worker, or its death, ends this
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    return Supervisor().run()


if __name__ == "__main__":
    sys.exit(main())
