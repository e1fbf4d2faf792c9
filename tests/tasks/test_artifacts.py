"""What is packed is what was asked for, wherever it is from; and the packing of it has bounds."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.contents import tree_digest
from tasks.drivers import artifacts
from tasks.drivers.artifacts import bring, pack
from tasks.drivers.checkout import archive_of
from tasks.drivers.rollout import TargetError
from tests.tasks.repository import git, repository

__all__ = ["repository"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a real server gives out what is in it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def tar_of(path: Path, kind: str = "w:gz", **files: bytes) -> str:
    with tarfile.open(path, kind) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def brought(kind: str, location: str, digest: str | None) -> dict[str, bytes]:
    made = io.BytesIO()
    bring({"kind": kind, "location": location, "digest": digest}, None, made)
    made.seek(0)
    with tarfile.open(fileobj=made) as archive:
        return {each.name: archive.extractfile(each).read() for each in archive if each.isfile()}  # type: ignore[union-attr]


def tree(folder: Path) -> Path:
    (folder / "b" / "c").mkdir(parents=True)
    (folder / "b" / "c" / "x").write_text("x")
    (folder / "b.c").write_text("1")
    (folder / "b" / "run").write_text("2")
    (folder / "b" / "run").chmod(0o755)
    (folder / "a").symlink_to("b/c")
    (folder / "\u00fc").mkdir()
    return folder


def test_a_folder_that_is_packed_has_the_digest_that_it_was_asked_for_by(tmp_path: Path):
    folder = tree(tmp_path / "build")
    assert brought("path", str(folder), tree_digest(folder)) == {"b/c/x": b"x", "b.c": b"1", "b/run": b"2"}


def test_what_is_changed_while_it_is_packed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tree(tmp_path / "build")
    wanted = tree_digest(folder)

    def change(root: Path) -> Any:
        for name, path in entries(root):
            if path.name == "run":
                path.write_text("3")
            yield name, path

    entries = artifacts.entries
    monkeypatch.setattr(artifacts, "entries", change)
    with pytest.raises(TargetError, match="other content than was asked for"):
        pack(str(folder), None, io.BytesIO(), wanted)


def test_an_archive_here_that_is_another_one_by_now_is_refused(tmp_path: Path):
    wanted = tar_of(tmp_path / "a.tar", x=b"1")
    assert brought("path", str(tmp_path / "a.tar"), wanted) == {"x": b"1"}
    tar_of(tmp_path / "a.tar", x=b"2")
    with pytest.raises(TargetError, match="nothing was touched"):
        brought("path", str(tmp_path / "a.tar"), wanted)


def test_what_is_at_an_address_is_brought_where_it_is_what_was_asked_for(served):
    folder, url = served
    wanted = tar_of(folder / "web.tgz", page=b"hello")
    assert brought("url", f"{url}/web.tgz", wanted) == {"page": b"hello"}
    tar_of(folder / "web.tgz", page=b"other")
    with pytest.raises(TargetError, match="other content than was asked for"):
        brought("url", f"{url}/web.tgz", wanted)


def test_what_cannot_be_downloaded_is_told_in_one_line(served, monkeypatch: pytest.MonkeyPatch):
    folder, url = served
    wanted = tar_of(folder / "web.tgz", page=os.urandom(100_000))
    with pytest.raises(TargetError, match=r"^the artifact cannot be downloaded: it answered 404$"):
        brought("url", f"{url}/none.tgz", wanted)
    with pytest.raises(TargetError, match=r"^nothing says what the artifact must be"):
        brought("url", f"{url}/web.tgz", None)
    with pytest.raises(TargetError, match="metadata"):
        brought("url", "http://169.254.169.254/web.tgz", wanted)
    monkeypatch.setattr(artifacts, "MAX_DOWNLOAD_BYTES", 50_000)
    with pytest.raises(TargetError, match="it is larger than 50000 bytes"):
        brought("url", f"{url}/web.tgz", wanted)


def test_what_is_no_archive_and_what_unpacks_to_too_much_is_refused(served, monkeypatch: pytest.MonkeyPatch):
    folder, url = served
    (folder / "page.html").write_text("<html>" * 1000)
    digest = f"sha256:{hashlib.sha256((folder / 'page.html').read_bytes()).hexdigest()}"
    with pytest.raises(TargetError, match=r"^the artifact is no tar that can be read: [^\n]+$"):
        brought("url", f"{url}/page.html", digest)
    bomb = tar_of(folder / "bomb.tgz", zeros=bytes(5_000_000))
    (folder / "cut.tgz").write_bytes((folder / "bomb.tgz").read_bytes()[:-500])
    cut = f"sha256:{hashlib.sha256((folder / 'cut.tgz').read_bytes()).hexdigest()}"
    with pytest.raises(TargetError, match=r"^the artifact "):
        brought("url", f"{url}/cut.tgz", cut)
    monkeypatch.setattr(artifacts, "MAX_UNPACKED_BYTES", 4_000_000)
    with pytest.raises(TargetError, match="unpacks to more than 4000000 bytes"):
        brought("url", f"{url}/bomb.tgz", bomb)


def test_a_commit_is_brought_as_it_was_whatever_its_branch_is_by_now(repository: Path):
    first, second = git(repository, "rev-parse", "main~1"), git(repository, "rev-parse", "main")
    assert brought("git", str(repository), f"git:{first}") == {"page": b"one"}
    assert brought("git", str(repository), f"git:{second}") == {"page": b"two"}
    with pytest.raises(TargetError, match=f"has no commit {'0' * 40}"):
        brought("git", str(repository), f"git:{'0' * 40}")
    with pytest.raises(TargetError, match="the repository cannot be read"):
        brought("git", str(repository / "none"), f"git:{first}")


@pytest.mark.parametrize("hostile", ["--upload-pack=touch {mark}", "ext::touch% {mark}", "-u", "--exec=touch {mark}"])
def test_neither_a_place_nor_a_commit_is_an_option_to_git(repository: Path, tmp_path: Path, hostile: str):
    mark = tmp_path / "mark"
    for location, commit in ((hostile.format(mark=mark), "0" * 40), (str(repository), hostile.format(mark=mark))):
        with pytest.raises(TargetError):
            archive_of(location, commit, io.BytesIO())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("links", "leads_out"),
    [
        ({"a/b": "../x", "c": "a"}, False),
        ({"a/deep/b": "../../x/y", "c": "a/deep"}, False),
        ({"a/b": "..", "c": "a/b/../outside"}, True),
        ({"a/up": "..", "b": "a/up/.."}, True),
        ({"c": "x/../../outside"}, True),
        ({"a/b": "../../outside"}, True),
        ({"c": "/etc"}, True),
    ],
)
def test_no_link_leads_out_also_by_way_of_another_one(tmp_path: Path, links: dict[str, str], leads_out: bool):
    folder = tmp_path / "build"
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    if leads_out:
        with pytest.raises(TargetError, match="a link that leads out of it"):
            pack(str(folder), None, io.BytesIO())
    else:
        pack(str(folder), None, io.BytesIO())
        assert all((folder / name).resolve().is_relative_to(folder) for name in links)
