"""Processes that a test starts, kills, freezes and looks at; every one of them is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.guardian import end_with_us

#: Others may be using this machine: what has no promise of its own gets this long.
PATIENCE = 180.0


def until(look: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Poll until the answer is true, and return it."""
    end = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < end, f"after {seconds:.0f} s still not: {what}"
        time.sleep(0.05)
    return answer


class Process:
    """One process that a test started, and what it printed."""

    def __init__(self, name: str, argv: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.argv = argv
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                argv, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._popen.pid
        end_with_us(self.pid)

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def children(self) -> list[int]:
        return children(self.pid)

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code."""
        return self._popen.wait(seconds)

    def stop(self, seconds: float = PATIENCE) -> int:
        """TERM, and its exit code."""
        if self.is_alive:
            self._popen.terminate()
        return self.wait(seconds)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP this process and its children, and nothing that they started in groups of their own."""
        with frozen([self.pid, *self.children]):
            yield

    def end(self) -> None:
        """End it for good, with everything that it started; whatever state it is in."""
        family = descendants(self.pid)
        for pid in [self.pid, *family]:
            if pid != self.pid or self.is_alive:
                kill(pid)
        self._popen.wait()


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP them meanwhile; whoever is gone afterwards is gone."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    """The direct children of a process, whichever of its threads started them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(each) for each in task.read_text().split()]
        except OSError:
            continue
    return found


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    """False for a zombie too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
