"""What is brought to a host: content with the digest that was asked for, packed anew so that unpacking it can leave
nothing outside of it."""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tasks import http
from tasks.contents import FOLDER_ENTRY, entries, file_entry, link_entry, tree_line
from tasks.drivers.checkout import archive_of
from tasks.drivers.rollout import TargetError

#: More files than that are a mistake (a home folder, a build's cache).
MAX_MEMBERS = 200_000
#: Of what is downloaded, and of what an archive unpacks to.
MAX_DOWNLOAD_BYTES = 4 * 1024**3
MAX_UNPACKED_BYTES = 16 * 1024**3
DOWNLOAD_SECONDS = 900.0
_CHUNK = 1024 * 1024


def bring(artifact: dict[str, Any], folder: str | None, into: IO[bytes]) -> str:
    """Write a tar of the artifact as :func:`pack` does, and see that it is what was asked for. ``artifact`` has a
    ``kind`` (see ``db.releases``), a ``location`` and a ``digest``. Raises TargetError where it is other content, or
    nothing says what it must be."""
    kind, location, wanted = artifact["kind"], artifact["location"], artifact["digest"]
    if not wanted:
        raise TargetError("nothing says what the artifact must be: ops deploy --digest sha256:...", permanent=True)
    if kind == "path":
        return pack(location, folder, into, wanted)
    with tempfile.TemporaryFile() as fetched:
        if kind == "url":
            try:
                found = http.download(location, fetched, timeout=DOWNLOAD_SECONDS, most=MAX_DOWNLOAD_BYTES)
            except http.HttpError as error:
                raise TargetError(f"the artifact cannot be downloaded: {error}") from None
            _same(f"sha256:{found}", wanted)
        elif kind == "git":  # git itself sees to it that what a commit names is that content
            archive_of(location, wanted.removeprefix("git:"), fetched)
        else:
            raise TargetError(f"an {kind} is nothing that can be brought to a host")
        return _packed(lambda: _write(_of_tar(fetched), into))


def pack(location: str, folder: str | None, into: IO[bytes], wanted: str | None = None) -> str:
    """Write a tar of a folder or tar here; answers its digest, which is the same for the same content.

    Names are relative and stay inside; links may point to what is inside; owners, times and special bits are left out.
    ``wanted`` is what ``tasks.contents.tree_digest`` says of it, None: whatever it is. It is compared with what was
    packed, so what is changed while it is read is noticed. Raises TargetError.
    """
    path = Path(location)
    if not path.is_absolute():
        if folder is None:
            raise TargetError("the artifact's path is relative, and the application has no working folder")
        home = Path(folder).resolve()
        path = home / path
        if not path.resolve().is_relative_to(home):
            raise TargetError("the artifact is outside of the application's working folder")

    def packed() -> str:
        if path.is_dir():
            tree = hashlib.sha256()
            digest = _write(_of_folder(path, tree), into)
            _same(f"sha256:{tree.hexdigest()}", wanted)
            return digest
        if not path.is_file():
            raise TargetError(f"there is no artifact {path.name} in {path.parent}")
        with tempfile.TemporaryFile() as copy:
            _same(f"sha256:{_copy(path, copy)}", wanted)
            return _write(_of_tar(copy), into)

    return _packed(packed)


def _packed(work: Callable[[], str]) -> str:
    try:
        return work()
    except tarfile.TarError as error:
        raise TargetError(f"the artifact is no tar that can be read: {str(error).splitlines()[0]}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TargetError(f"the artifact cannot be read: {said}") from None


def _same(found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise TargetError(
            f"the artifact is other content than was asked for ({wanted}): it is {found}; nothing was touched",
            permanent=True,
        )


def _copy(path: Path, into: IO[bytes]) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            found.update(data)
            into.write(data)
    return found.hexdigest()


Member = tuple[tarfile.TarInfo, "IO[bytes] | _Hashed | None"]


def _of_folder(root: Path, tree: hashlib._Hash) -> Iterator[Member]:
    """What is in a folder; ``tree`` becomes its digest as it is packed."""
    for name, path in entries(root):
        found = path.lstat()
        info = tarfile.TarInfo(path.relative_to(root).as_posix())
        info.mode = found.st_mode
        if stat.S_ISLNK(found.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
            yield info, None
            tree.update(tree_line(name, link_entry(os.fsencode(info.linkname))))
        elif stat.S_ISDIR(found.st_mode):
            info.type = tarfile.DIRTYPE
            yield info, None
            tree.update(tree_line(name, FOLDER_ENTRY))
        elif stat.S_ISREG(found.st_mode):
            with path.open("rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                digest = hashlib.sha256()
                yield info, _Hashed(file, digest)
            tree.update(tree_line(name, file_entry(bool(found.st_mode & stat.S_IXUSR), digest.hexdigest())))
        else:
            raise TargetError(f"the artifact holds what is no file, folder or link: {info.name}")


def _of_tar(file: IO[bytes]) -> Iterator[Member]:
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
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
    size = 0
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            name = _safe(info, seen)
            if name is None:
                continue
            if len(seen) >= MAX_MEMBERS:
                raise TargetError(f"the artifact has more than {MAX_MEMBERS} files")
            size += info.size
            if size > MAX_UNPACKED_BYTES:
                raise TargetError(f"the artifact unpacks to more than {MAX_UNPACKED_BYTES} bytes")
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
    """Whether a link ends inside. All steps up come first: after the name of another link they would begin where that
    one leads to, wherever that is."""
    if link.startswith("/") or not link or "\0" in link:
        return False
    parts = PurePosixPath(link).parts
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    return up <= len(folder.parts) and ".." not in parts[up:]


class _Hashed:
    """A file that is hashed as it is read."""

    def __init__(self, content: IO[bytes] | _Hashed, digest: hashlib._Hash) -> None:
        self._content = content
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        data = self._content.read(size)
        self._digest.update(data)
        return data
