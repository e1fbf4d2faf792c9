"""A real git repository: a file that says ``one`` at tag v1, ``two`` at a branch of the same name and at main."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def git(repository: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", *identity, "-C", str(repository), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("needs Debian's git")
    made = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", "-b", "main", str(made)], check=True)
    (made / "page").write_text("one")
    git(made, "add", "page")
    git(made, "commit", "-q", "-m", "one")
    git(made, "tag", "-a", "v1", "-m", "annotated")
    (made / "page").write_text("two")
    git(made, "commit", "-q", "-a", "-m", "two")
    git(made, "branch", "v1")
    git(made, "branch", "feature/v2")
    return made
