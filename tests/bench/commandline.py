"""How long `ops` takes from a keystroke to its end, as whole processes, beside `celery --help` in turn."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median

from tests.bench.report import Report
from tests.e2e.platform import ROOT, Platform

TURNS = 12
OPS = [sys.executable, "-c", "from worker.cli import main; main()"]
CELERY = [sys.executable, "-m", "celery", "--help"]
#: Arguments and how much of `celery --help` they may take.
COMMANDS = {"--help": 0.5, "status": 1.0, "deploy web v1 --to production --detach": 1.2}


def start_up(bench: Platform, report: Report) -> None:
    """The median of alternating runs; no worker runs, so what is asked for waits."""
    report.section(f"whole processes, {TURNS} of each in turn")
    environment = {**os.environ, **bench.environment, "OPS_USER": "bench", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: compiled once

    def run(command: list[str]) -> float:
        begin = time.perf_counter()
        subprocess.run(command, env=environment, cwd=bench.folder, capture_output=True, check=False)
        return time.perf_counter() - begin

    for words in ("db init", "app add web -- true", "infra add production"):
        subprocess.run([*OPS, *words.split()], env=environment, cwd=bench.folder, check=True, capture_output=True)
    celery: list[float] = []
    seconds: dict[str, list[float]] = {words: [] for words in COMMANDS}
    for _ in range(TURNS + 1):  # the first of each compiles and warms up
        celery.append(run(CELERY))
        for words, taken in seconds.items():
            taken.append(run([*OPS, *words.split()]))
    theirs = median(celery[1:])
    for words, most in COMMANDS.items():
        ours = median(seconds[words][1:])
        detail = f"{ours * 1000:.0f} ms against {theirs * 1000:.0f} ms of celery --help"
        report.at_most(f"ops {words.split(' ')[0]}", ours / theirs, most, detail)
