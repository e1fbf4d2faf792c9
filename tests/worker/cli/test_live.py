"""A screen that is looked at shows what is, again and again, and gives the terminal back."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import tests

ROOT = Path(tests.__file__).parent.parent
WATCH = [sys.executable, "-c", "from worker.cli import main; main()", "status", "--watch", "--interval", "0.2"]


def test_with_json_it_is_one_look_a_line_until_it_is_stopped(database):
    watching = subprocess.Popen([*WATCH, "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert watching.stdout is not None
    with watching:
        looks = [watching.stdout.readline() for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
    assert all(b'"queues": []' in look for look in looks)
    assert watching.returncode == 3, "nobody works here"


def test_on_a_terminal_it_has_a_screen_of_its_own_and_gives_it_back(database):
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        WATCH,
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(theirs)
    shown = b""
    with watching:
        while shown.count(b"every 0.2 s") < 2:
            shown += os.read(ours, 65536)
        watching.send_signal(signal.SIGINT)
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # how a terminal says that nobody is there any more
            pass
    os.close(ours)
    assert b"nobody works here" in shown
    assert shown.index(b"\x1b[?1049h") < shown.index(b"every 0.2 s") < shown.rindex(b"\x1b[?1049l")
    assert b"Traceback" not in shown
