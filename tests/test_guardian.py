"""What tests start ends with them, also when they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.process import until
from tests.guardian import ROOT

STARTER = """
import subprocess, sys
from tests.guardian import end_with_us, guarded_stack
with guarded_stack("ops-guarded-") as stack:
    child = subprocess.Popen(["sleep", "600"], env={"DATABASE_URL": stack.database_url()}, start_new_session=True)
    end_with_us(child.pid)
    print(stack.data_dir, stack.postgres.pid, stack.valkey.pid, child.pid, flush=True)
    sys.stdin.read()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_servers_and_processes_of_a_killed_test_end_and_nothing_of_them_is_left():
    test = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert test.stdin is not None
    assert test.stdout is not None
    with test:
        folder, *pids = test.stdout.readline().split()
        assert all(is_alive(int(pid)) for pid in pids)
        os.kill(test.pid, signal.SIGKILL)
    until(lambda: not any(is_alive(int(pid)) for pid in pids), "its servers and its process are gone")
    until(lambda: not Path(folder).parent.exists(), "its folder is gone")
