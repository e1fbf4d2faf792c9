"""Ends what a test process has started when that process is gone and could not do so itself: killed, or interrupted in
the middle (pytest-xdist ends its workers without their teardown).

One guardian per test process, a program of its own that reads a pipe until its other end is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.devstack import Stack

ROOT = Path(__file__).parent.parent
#: The guardian of this process, by its number: a forked child is not what it watches.
_guardians: dict[int, subprocess.Popen[bytes]] = {}


@contextmanager
def guarded_stack(prefix: str) -> Iterator[Stack]:
    """Servers in a temporary folder of their own, started; stopped and removed at the end, whatever the end is."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _tell(f"folder {folder}")
    servers = Stack(folder / "stack")
    try:
        servers.start()
        yield servers
    finally:
        servers.delete()
        shutil.rmtree(folder, ignore_errors=True)


def end_with_us(pid: int, mark: str = "") -> None:
    """The leader of a process group that must not outlive this test process. ``mark``: a path of its own on its
    command line, for one whose environment cannot be read."""
    if mark:
        _tell(f"mark {mark}")
    _tell(f"group {pid}")


def _tell(line: str) -> None:
    guardian = _guardians.get(os.getpid())
    if guardian is None:
        guardian = _guardians[os.getpid()] = subprocess.Popen(
            [sys.executable, "-m", "tests.guardian"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT,
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        atexit.register(_dismiss, os.getpid())
    assert guardian.stdin is not None
    guardian.stdin.write(line.encode() + b"\n")


def _dismiss(pid: int) -> None:
    if pid == os.getpid():
        _guardians.pop(pid).communicate()


def main() -> int:
    told = [line.split(" ", 1) for line in sys.stdin.read().splitlines()]
    for kind, what in told:
        # A number may be another's by now, but not while it is the leader of a group that works for one of our folders.
        if kind == "group" and any(path in _known(int(what)) for name, path in told if name in ("folder", "mark")):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(what), signal.SIGKILL)
    for kind, what in told:
        if kind == "folder" and Path(what).is_dir():
            Stack(Path(what) / "stack").delete()
            shutil.rmtree(what, ignore_errors=True)
    return 0


def _known(pid: int) -> str:
    with contextlib.suppress(OSError):
        read = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline")]
        return b"\0".join(read).decode("utf-8", "replace")
    return ""


if __name__ == "__main__":
    sys.exit(main())
