"""The worker's side of a supervised driver: start it, hear its events, renew its lease, ask for its end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tasks import supervisor
from tasks.supervisor import now

#: What a driver sees of this process's environment. Everything else, the platform's own secrets first, stays here.
PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TZ", "XDG_RUNTIME_DIR")
_LONGEST_LINE = 4 * 1024 * 1024
#: How long a supervisor may take to kill what it has started.
GONE_SECONDS = 10.0
#: One that has not ended its driver so long after it had to is itself stopped; the next holder starts later than this.
LATE_SECONDS = 2.0


def base_environment() -> dict[str, str]:
    """What programs that we start get, before anything configured is added."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


class Effect:
    """One supervised run. Create it before the job's begin, so that its process can be named there.

    Leaving its context ends it: nothing of it is alive afterwards, also when an exception interrupts the caller.
    :meth:`renew` and :meth:`stop` may be called from any thread.
    """

    def __init__(self) -> None:
        home = str(Path(supervisor.__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=base_environment() | {"PYTHONPATH": home},
            cwd="/",
            start_new_session=True,  # a Ctrl-C on the worker's terminal is not for it
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._talking = threading.Lock()
        self._driver: int | None = None
        self._grace = 0.0
        self._lease_end = self._stop_end = self._late_since = math.inf

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    def start(
        self,
        argv: list[str],
        plan: dict[str, Any],
        *,
        lease_end: float,
        timeout_end: float,
        grace: float,
        report: dict[str, Any],
    ) -> None:
        """Let the driver start. Ends are points on :func:`tasks.supervisor.now`'s clock."""
        self._lease_end, self._grace = lease_end, grace
        order = {
            "argv": argv, "plan": plan, "lease_end": lease_end, "timeout_end": timeout_end,
            "grace": grace, "report": report,
        }  # fmt: skip
        self._tell({"start": order})

    def renew(self, lease_end: float) -> None:
        """The lease has been renewed until then."""
        self._lease_end = lease_end
        self._tell({"lease_end": lease_end})

    def stop(self, why: str) -> None:
        """Ask for the end: ``cancelled``, ``timeout`` or ``interrupted``; the first reason counts."""
        self._stop_end = min(self._stop_end, now() + self._grace)
        self._tell({"stop": why})

    def answer(self, number: int, *, stored: bool) -> None:
        """Tell the driver that its event of this number is stored, or that it never will be."""
        self._tell({"ack" if stored else "refuse": number})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pipe, at which a supervisor kills what it has started, and wait until it has gone."""
        self._close()
        try:
            self._process.wait(GONE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._kill_driver()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def events(self, tick: float) -> Iterator[dict[str, Any] | None]:
        """The events as they come, and None at least every ``tick`` seconds; ends with the supervisor.

        The last event is always ``ended``: where the supervisor itself was killed, its ``why`` is
        ``supervisor died`` and the driver's group has been killed from here.
        """
        ended = False
        buffer = b""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                if not ready.select(tick):
                    if self._process.poll() is not None:
                        break  # and something that the driver left behind keeps the pipe open
                    self._fence(ended)
                    yield None
                    continue
                try:
                    data = os.read(self._process.stdout.fileno(), 262144)
                except BlockingIOError:
                    continue
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                if len(buffer) > _LONGEST_LINE:
                    buffer = b"\0"  # no driver of ours writes such a line, and its rest is no event, either
                for line in lines:
                    event = _parse(line)
                    if event is None:
                        continue
                    if event["event"] == "started" and self._driver is None and isinstance(event.get("pid"), int):
                        self._driver = event["pid"]
                    ended = ended or event["event"] == "ended"
                    yield event
                self._fence(ended)
                yield None
        self._close()
        self._process.wait()
        if not ended:
            self._kill_driver()
            yield {"event": "ended", "why": "supervisor died", "code": None}

    def _fence(self, ended: bool) -> None:
        """End the driver from here where its supervisor should have, and does not: it is stopped itself."""
        if ended or now() <= min(self._lease_end, self._stop_end):
            self._late_since = math.inf
            return
        # From the first look: this process may have been stopped as well, and not have heard of the end yet.
        self._late_since = min(self._late_since, now())
        late = now() - self._late_since
        if late > LATE_SECONDS and self._driver is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._driver, signal.SIGKILL)
        if late > (GONE_SECONDS if self._driver is not None else LATE_SECONDS):
            self._process.kill()

    def _tell(self, message: dict[str, Any]) -> None:
        with self._talking, contextlib.suppress(OSError, ValueError):
            # A supervisor that is gone cannot be told anything; `events` will say so.
            assert self._process.stdin is not None
            data = memoryview(json.dumps(message).encode() + b"\n")
            while data:
                data = data[self._process.stdin.write(data) :]

    def _close(self) -> None:
        with self._talking, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _kill_driver(self) -> None:
        if self._driver is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._driver, signal.SIGKILL)
                supervisor.wait_for_group(self._driver)


def _parse(line: bytes) -> dict[str, Any] | None:
    """An event, or None for a line that is none: a driver may print nonsense, and it must not matter."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
