"""A Docker engine for the tests that need one: one that answers, or that the folder of OPS_DOCKER_SETUP starts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NO_ENGINE = "no Docker engine answers (Debian's package docker.io), and OPS_DOCKER_SETUP names no folder with engine.sh"
NO_COMPOSE = "there is no `docker compose`, version 2"


def answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def engine(*, compose: bool = False) -> Iterator[None]:
    """While inside, an engine answers, and `docker compose` where that is wanted; else the test is skipped. An engine
    that was started for it is stopped."""
    setup = os.environ.get("OPS_DOCKER_SETUP")
    folder = Path(setup) if setup else None
    starts = folder is not None and (folder / "engine.sh").is_file()
    was_there = answers("docker", "version")
    if not was_there and not starts:
        pytest.skip(NO_ENGINE)
    try:
        for script in ("engine.sh", "images.sh", "compose-v2.sh"):
            if folder is not None and (folder / script).is_file():
                subprocess.run([folder / script], check=True, timeout=900, stdin=subprocess.DEVNULL)
        if compose and not answers("docker", "compose", "version"):
            pytest.skip(NO_COMPOSE)
        yield
    finally:
        if folder is not None and starts and not was_there and shutil.which("docker"):
            subprocess.run([folder / "engine.sh", "stop"], check=False, timeout=120)
