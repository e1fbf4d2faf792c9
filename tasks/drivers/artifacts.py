"""What is brought to a host: a folder or a tar, packed anew so that unpacking it can leave nothing outside of it."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tasks.drivers.rollout import TargetError

#: More files than that are a mistake (a home folder, a build's cache).
MAX_MEMBERS = 200_000


def pack(artifact: str, folder: str | None, version: str, into: IO[bytes]) -> str:
    """Write a tar of the artifact; answers its digest, which is the same for the same content.

    Names are relative and stay inside; links may point to what is inside; owners, times and special bits are left out.
    Raises TargetError for everything else.
    """
    path = Path(artifact.replace("{version}", version))
    if not path.is_absolute():
        if folder is None:
            raise TargetError("the artifact's path is relative, and the application has no working folder")
        home = Path(folder).resolve()
        path = home / path
        if not path.resolve().is_relative_to(home):
            raise TargetError("the artifact is outside of the application's working folder")
    try:
        if path.is_dir():
            members = _of_folder(path)
        elif path.is_file():
            members = _of_tar(path)
        else:
            raise TargetError(f"there is no artifact {path.name} in {path.parent}")
        return _write(members, into)
    except (OSError, tarfile.TarError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TargetError(f"the artifact cannot be read: {said}") from None


Member = tuple[tarfile.TarInfo, "IO[bytes] | None"]


def _of_folder(root: Path) -> Iterator[Member]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*files, *folders]):
            path = Path(folder) / name
            found = path.lstat()
            info = tarfile.TarInfo(path.relative_to(root).as_posix())
            info.mode = found.st_mode
            if stat.S_ISLNK(found.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
                yield info, None
            elif stat.S_ISDIR(found.st_mode):
                info.type = tarfile.DIRTYPE
                yield info, None
            elif stat.S_ISREG(found.st_mode):
                with path.open("rb") as content:
                    info.size = os.fstat(content.fileno()).st_size
                    yield info, content
            else:
                raise TargetError(f"the artifact holds what is no file, folder or link: {info.name}")


def _of_tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for found in archive:
            info = tarfile.TarInfo(found.name)
            info.mode, info.type, info.linkname = found.mode, found.type, found.linkname
            if found.isfile():
                info.type, info.size = tarfile.REGTYPE, found.size
                yield info, archive.extractfile(found)
            elif found.isdir() or found.issym() or found.islnk():
                yield info, None
            else:
                raise TargetError(f"the artifact holds what is no file, folder or link: {found.name!r}")


def _write(members: Iterator[Member], into: IO[bytes]) -> str:
    digest = hashlib.sha256()
    seen: dict[PurePosixPath, bytes] = {}
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            name = _safe(info, seen)
            if name is None:
                continue
            if len(seen) >= MAX_MEMBERS:
                raise TargetError(f"the artifact has more than {MAX_MEMBERS} files")
            seen[name] = info.type
            info.name = name.as_posix()
            info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
            digest.update(f"{info.name}\0{info.type!r}\0{info.mode}\0{info.linkname}\0{info.size}\0".encode())
            archive.addfile(info, _Hashed(content, digest) if content is not None else None)
    return digest.hexdigest()


def _safe(info: tarfile.TarInfo, seen: dict[PurePosixPath, bytes]) -> PurePosixPath | None:
    """The name without its dots; None for the folder itself. Raises TargetError for what would leave it."""
    name = PurePosixPath(info.name)
    shown = ascii(info.name)[:200]
    if name.is_absolute() or ".." in name.parts or "\0" in info.name:
        raise TargetError(f"the artifact holds a name that leads out of it: {shown}")
    if not name.parts:
        return None
    if name.parts[0].startswith(".ops"):
        raise TargetError(f"names that start with .ops are the platform's: {shown}")
    for parent in name.parents:
        if seen.get(parent, tarfile.DIRTYPE) != tarfile.DIRTYPE:
            raise TargetError(f"the artifact holds something inside of what is no folder: {shown}")
    if seen.get(name, info.type) != info.type or (name in seen and info.type != tarfile.DIRTYPE):
        raise TargetError(f"the artifact holds a name twice: {shown}")
    if info.type == tarfile.SYMTYPE and not _stays(name.parent, info.linkname):
        raise TargetError(f"the artifact holds a link that leads out of it: {shown}")
    if info.type == tarfile.LNKTYPE:
        target = PurePosixPath(info.linkname)
        if seen.get(target) != tarfile.REGTYPE:
            raise TargetError(f"the artifact holds a hard link to what is not in it: {shown}")
        info.linkname = target.as_posix()
    return name


def _stays(folder: PurePosixPath, link: str) -> bool:
    if link.startswith("/") or not link or "\0" in link:
        return False
    depth = len(folder.parts)
    for part in PurePosixPath(link).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, content: IO[bytes], digest: hashlib._Hash) -> None:
        self._content = content
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        data = self._content.read(size)
        self._digest.update(data)
        return data
