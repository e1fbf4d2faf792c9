"""Looks up what a version's content is: the digest of a tree, the commit of a tag or branch."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from db.releases import Kind, Reference
from tasks.contents import ReleaseError, git_environment, tree_digest

GIT_SECONDS = 30


def resolve(release: Reference, version: str, folder: str | None = None) -> str | None:
    """The digest of a version's content as it is now; None where it is only known once it is fetched (an image by its
    tag, an address). ``folder`` is where a relative path begins. Raises ReleaseError."""
    if release.digest is not None:
        return release.digest
    if release.kind is Kind.PATH:
        return tree_digest(Path(folder or "/") / release.location)
    if release.kind is Kind.GIT:
        return commit_of(release.location, version)
    return None


def commit_of(location: str, version: str) -> str:
    """``git:`` and the commit that a tag (first) or branch is at. Raises ReleaseError."""
    names = [f"refs/tags/{version}^{{}}", f"refs/tags/{version}", f"refs/heads/{version}"]
    # A version begins with a letter or digit and an address with no dash; what follows `--` is no option in any case.
    argv = ["git", "ls-remote", "--", location, *names]
    try:
        done = subprocess.run(
            argv, env=git_environment(), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_SECONDS,
            check=False, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise ReleaseError("git is not installed where this runs") from None
    except subprocess.TimeoutExpired:
        raise ReleaseError(f"the repository did not answer within {GIT_SECONDS} s") from None
    if done.returncode != 0:
        raise ReleaseError(f"the repository cannot be read (git ls-remote exited with {done.returncode})")
    pairs = (line.split("\t", 1) for line in done.stdout.decode("utf-8", "replace").splitlines() if "\t" in line)
    found = {name: commit for commit, name in pairs}
    for name in names:
        if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", found.get(name, "")):
            return f"git:{found[name]}"
    raise ReleaseError(f"the repository has no tag or branch {version}")
