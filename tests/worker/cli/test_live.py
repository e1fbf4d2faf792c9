"""A screen that is looked at shows what is, again and again, and gives the terminal back."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

import tests
from worker.cli.live import fitted

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
        while shown.count(b"every 0.2 s") < 3:
            shown += os.read(ours, 65536)
        watching.send_signal(signal.SIGINT)
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # how a terminal says that nobody is there any more
            pass
    os.close(ours)
    assert b"nobody works here" in shown
    looks = [look for look in shown.split(b"\x1b[H") if b"every 0.2 s" in look]
    assert [look.count(b"database ") for look in looks] == [1] * len(looks), "each shows what is then, and that alone"
    assert shown.index(b"\x1b[?1049h") < shown.index(b"every 0.2 s") < shown.rindex(b"\x1b[?1049l")
    assert b"Traceback" not in shown


def test_what_has_no_room_on_the_screen_is_said_to_be_missing():
    def shown(height: int) -> list[str]:
        return fitted(Console(width=100, height=height), page, "every 2 s").plain.split("\n")

    page = "\n".join(["head", "", *(f"line {number}" for number in range(10))]) + "\n"
    assert shown(13) == ["head", "", *(f"line {number}" for number in range(10)), "every 2 s"]
    assert shown(12) == ["head", *(f"line {number}" for number in range(10)), "every 2 s"], "empty lines go first"
    assert shown(8)[-2:] == ["line 5", "4 more lines in a taller window, or by `ops status`; every 2 s"]
    page = "word " * 40
    assert len(shown(8)) == 3, "a line that is longer than the screen is wide takes two"
