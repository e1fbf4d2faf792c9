"""What the digest of a folder or file is made of, and what git may know of its surroundings."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

#: So much is read of one tree; larger ones belong into an archive.
MAX_FILES = 200_000
FOLDER_ENTRY = b"d"
_CHUNK = 1024 * 1024


class ReleaseError(Exception):
    """The content cannot be looked up; the message is one line for a person."""


def tree_digest(path: Path) -> str:
    """``sha256:`` of a file, or of a folder: names, kinds, whether executable, contents, targets of links; not times,
    not owners. Raises ReleaseError, also for what is neither file, folder nor link."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return f"sha256:{_file_digest(path)}"
        found = hashlib.sha256()
        for count, (name, entry) in enumerate(entries(path)):
            if count >= MAX_FILES:
                raise ReleaseError(f"the release has more than {MAX_FILES} files")
            found.update(tree_line(name, _entry(entry)))
    except OSError as error:
        raise ReleaseError(f"the release cannot be read: {error.strerror}: {path.name}") from None
    return f"sha256:{found.hexdigest()}"


def tree_line(name: bytes, entry: bytes) -> bytes:
    """What one entry adds to a tree's digest, in the order of :func:`entries`."""
    return f"{len(name)}:".encode() + name + entry


def link_entry(target: bytes) -> bytes:
    return b"l%d:" % len(target) + target


def file_entry(is_executable: bool, digest: str) -> bytes:
    return (b"x" if is_executable else b"f") + digest.encode()


def entries(root: Path) -> Iterator[tuple[bytes, Path]]:
    """Everything below a folder, by name, in an order that is the same everywhere; links are not followed."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        here = sorted(folder.iterdir(), key=lambda each: os.fsencode(each.name))
        for each in here:
            yield os.fsencode(each.relative_to(root)), each
        waiting += [each for each in reversed(here) if each.is_dir() and not each.is_symlink()]


def _entry(path: Path) -> bytes:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return link_entry(os.fsencode(path.readlink()))
    if stat.S_ISDIR(mode):
        return FOLDER_ENTRY
    if stat.S_ISREG(mode):
        return file_entry(bool(mode & stat.S_IXUSR), _file_digest(path))
    raise ReleaseError(f"the release holds what is neither file, folder nor link: {path.name}")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while data := file.read(_CHUNK):
            found.update(data)
    return found.hexdigest()


def git_environment() -> dict[str, str]:
    """What git may know here: who this user is, and nothing that asks a person or runs a program by its address."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SSH_AUTH_SOCK") if name in os.environ}
    return environment | {
        "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:http:ssh:file", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    }  # fmt: skip
