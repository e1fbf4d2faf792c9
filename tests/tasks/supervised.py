"""Drivers under a supervisor, as tests write them: a line of Python, a family of shells; and how they ended."""

from __future__ import annotations

import psutil

from tests.tasks.conftest import Program

TICK = "\nwhile True:\n    say('tick')\n    time.sleep(0.02)"
#: A child that ignores TERM, and so does its child.
STUBBORN = "trap '' TERM HUP; (while :; do sleep 1; done) & echo $! >&2; while :; do sleep 1; done"


def up(supervisor: Program) -> int:
    """Wait until the driver is up; its pid."""
    return int(supervisor.until("log", "up ")["text"].split()[1])


def ended(supervisor: Program) -> tuple[str, int | None]:
    """Why it ended and with what exit code: always the last event, and said once."""
    *_, last = supervisor.finish()
    assert last["event"] == "ended"
    assert [event["event"] for event in supervisor.seen].count("ended") == 1
    return last["why"], last["code"]


def dead(*pids: int) -> None:
    for pid in pids:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def family(line: str) -> str:
    """Python that starts a shell line in the driver's group, says the pids of it and of its child, and waits."""
    return f"""
child = subprocess.Popen(["/bin/sh", "-c", {line!r}], stderr=subprocess.PIPE)
say(f"pids {{child.pid}} {{child.stderr.readline().decode()}}")
child.wait()"""


def pids(supervisor: Program) -> list[int]:
    return [int(each) for each in supervisor.until("log", "pids ")["text"].split()[1:]]
