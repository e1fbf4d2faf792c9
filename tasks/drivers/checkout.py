"""A commit of a repository as a tar, by git in a process of its own."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from tasks.contents import git_environment
from tasks.drivers.rollout import TargetError

FETCH_SECONDS = 600.0


def archive_of(location: str, commit: str, into: IO[bytes]) -> None:
    """Write the tar of a commit, which is named by its number alone. Raises TargetError."""
    if not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit):
        raise TargetError("a commit is 40 or 64 hexadecimal digits", permanent=True)
    with tempfile.TemporaryDirectory(prefix="ops-git-") as name:
        place = Path(name)
        kind = "sha256" if len(commit) == 64 else "sha1"
        _git(place, "init", "--quiet", "--bare", "--template=", f"--object-format={kind}")
        # Some servers give out a commit by its number; of others it is had with what leads to it.
        fetch = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules")
        if _git(place, *fetch, "--depth=1", "--", location, commit, may_fail=True) != 0:
            _git(place, *fetch, "--", location, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        if _git(place, "cat-file", "-e", f"{commit}^{{commit}}", may_fail=True) != 0:
            raise TargetError(f"the repository has no commit {commit} on a branch or tag", permanent=True)
        _git(place, "archive", "--format=tar", commit, into=into)


def _git(place: Path, *words: str, may_fail: bool = False, into: IO[bytes] | None = None) -> int:
    """One command; its words are ours but for a location behind ``--`` and a commit that is digits. In the driver's own
    process group, so that it ends with it; what it says may show an address with a password in it, and is not kept."""
    try:
        argv = ["git", *words]
        done = subprocess.run(
            argv, cwd=place, env=git_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if into is None else into, stderr=subprocess.DEVNULL, timeout=FETCH_SECONDS,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise TargetError("git is not installed on this worker", permanent=True) from None
    except subprocess.TimeoutExpired:
        raise TargetError(f"the repository was not read within {FETCH_SECONDS:g} s") from None
    if done.returncode != 0 and not may_fail:
        raise TargetError(f"the repository cannot be read (git {words[0]} exited with {done.returncode})")
    return done.returncode
