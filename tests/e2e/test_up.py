"""`ops up` by the hands of those who use it: twice at once, on a taken port, in a terminal that is closed; and what it
looks after comes back."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.process import is_alive, until
from worker.devstack import Stack
from worker.foreman import running_foreman

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

OPS = [sys.executable, "-c", "from worker.cli import main; main()"]


class Folder:
    """A folder with a stack of its own, and `ops` in it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ops-up-"))
        self.stack = Stack(self.home / ".ops")
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "OPS_POSTGRES_BIN") if name in os.environ}
        self.environment = kept | {"OPS_DATA_DIR": str(self.stack.data_dir), "OPS_USER": "ann"}

    def start(self, *arguments: str, **options: int) -> subprocess.Popen[str]:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*OPS, *arguments], cwd=self.home, env=self.environment, text=True, **streams)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        printed, remarks = process.communicate()
        return process.returncode, printed, remarks


@pytest.fixture
def folder() -> Iterator[Folder]:
    made = Folder()
    try:
        yield made
    finally:
        made("down")
        made.stack.delete()
        shutil.rmtree(made.home, ignore_errors=True)


def nobody_is_left(folder: Folder) -> bool:
    return running_foreman(folder.stack) is None and not folder.stack.postgres.pid and not folder.stack.valkey.pid


@pytest.mark.parametrize("how", [[], ["--detach"]])
def test_a_taken_port_is_one_line_that_says_what_to_do(folder: Folder, how: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, remarks = folder("up", "--port", str(port), *how)
    assert code == 5
    assert remarks.splitlines() == [f"error: port {port} is taken", "  try: ops up --port ANOTHER"]
    assert nobody_is_left(folder)


def test_of_two_at_once_one_runs_and_the_other_is_told_so(folder: Folder) -> None:
    """And the one that gives way stops nothing of the other."""
    both = [folder.start("up", "--detach") for _ in range(2)]
    ends = [(each.communicate()[1], each.returncode) for each in both]
    assert sorted(code for _, code in ends) == [0, 5], ends
    (said,) = (remarks for remarks, code in ends if code)
    assert said.startswith(f"error: the platform runs already (process {running_foreman(folder.stack)})")
    assert folder("status")[0] == 0
    assert folder("down")[0] == 0
    assert nobody_is_left(folder)


def test_servers_that_die_are_started_again(folder: Folder) -> None:
    assert folder("up", "--detach")[0] == 0
    folder.stack.postgres.kill()
    folder.stack.valkey.kill()
    until(lambda: folder.stack.is_running, "both are back")
    until(lambda: folder("status")[0] == 0, "everything works again")
    assert folder("down")[0] == 0
    assert nobody_is_left(folder)


def test_a_terminal_that_is_closed_leaves_nothing_running(folder: Folder) -> None:
    ours, theirs = pty.openpty()
    process = folder.start("up", stdin=theirs, stdout=theirs, stderr=theirs, process_group=0)
    os.close(theirs)
    until(lambda: (folder.stack.data_dir / "up.ready").exists(), "it is up")
    os.close(ours)  # from now on every write to it fails
    process.send_signal(signal.SIGHUP)
    process.wait(60)
    assert nobody_is_left(folder)
    assert not is_alive(process.pid)
