"""Celery's own commands, as its users know them; and any number of beats."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import SCHEMA
from tests.e2e.platform import Platform
from tests.e2e.process import Process, until

pytestmark = pytest.mark.e2e

CELERY = str(Path(sys.executable).parent / "celery")


def ticks(platform: Platform) -> list[float]:
    rows = platform.rows(
        """SELECT extract(epoch FROM at)::float AS at FROM audit_logs
        WHERE action = 'tick.changed' AND resource_id = 'fast' ORDER BY id"""
    )
    return [row["at"] for row in rows]


def test_any_number_of_beats_tick_once_per_interval_whatever_dies(breakable: Platform) -> None:
    worker = breakable.worker(app="tests.e2e.metronome", queues="control", wait=False)
    first, second = (breakable.beat(name, app="tests.e2e.metronome") for name in ("beat-1", "beat-2"))

    def three_more(what: str) -> None:
        before = len(ticks(breakable))
        until(lambda: len(ticks(breakable)) >= before + 3, f"it ticks {what}")

    three_more("with two beats")
    first.kill()
    three_more("with one beat dead")
    breakable.stack.valkey.kill()
    breakable.stack.start()
    three_more("after the broker died")
    breakable.stack.postgres.kill()
    breakable.stack.start()
    three_more("after the database died")
    assert min(after - before for before, after in pairwise(ticks(breakable))) > 0.8
    assert breakable.stop(second, worker) == [0, 0]
    assert {row["kind"] for row in breakable.rows("SELECT kind FROM processes")} <= {"beat"}, "the killed one alone"
    assert "Traceback" not in second.text


def test_celerys_commands_need_no_more_than_the_env_file_of_a_folder(platform: Platform) -> None:
    home = platform.folder / "a folder"
    (home / ".ops").mkdir(parents=True)
    names = ("DATABASE_URL", "OPS_BROKER_URL", "ENCRYPTION_KEY", "SECRET_KEY")
    lines = [f"{name}={os.environ[name]}" for name in names] + [f"OPS_DATABASE_SCHEMA={SCHEMA}"]
    (home / ".ops" / "env").write_text("\n".join(lines))
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    for name in ("worker", "beat"):
        process = Process(name, [CELERY, "-A", "worker.app", name, "--loglevel", "INFO"], bare, home)
        platform.processes.append(process)
    for process in platform.processes:
        platform.wait_ready(process)
    deployed = platform.deploy("--seconds", "0.1")
    assert platform.wait_ended(deployed) == "success"
    assert platform.stop(*platform.processes) == [0, 0]
    assert sorted(path.name for path in home.iterdir()) == [".ops", "beat.log", "worker.log"]


@pytest.mark.parametrize("command", ["worker", "beat"])
@pytest.mark.parametrize("missing", ["OPS_BROKER_URL", "DATABASE_URL"])
def test_a_missing_setting_is_one_line_and_no_traceback(platform: Platform, command: str, missing: str) -> None:
    given = {name: value for name, value in platform.environment.items() if name != missing}
    done = subprocess.run(
        [CELERY, "-A", "worker.app", command],
        env=given,
        cwd=platform.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {missing} is not set")
    assert "Traceback" not in done.stderr


def test_a_worker_without_tables_or_with_another_key_says_so_and_ends(platform: Platform) -> None:
    broken = platform.worker("w1", wait=False, OPS_DATABASE_SCHEMA="elsewhere")
    assert broken.wait() != 0
    assert "error: the database has no tables of ours" in broken.text
    assert "Traceback" not in broken.text
    good = platform.worker("w2")
    other = platform.worker("w3", wait=False, ENCRYPTION_KEY="b" * 43 + "=")
    assert other.wait() != 0
    assert "error:" in other.text
    assert good.is_alive
