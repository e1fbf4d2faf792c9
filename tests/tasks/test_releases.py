"""A version is content with a digest: of a tree, or a commit; and nothing that a version says is an option to git."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from db.errors import InvalidInput
from db.fields import check
from db.releases import Kind, Reference, reference
from db.specs import ApplicationConfiguration, DeploymentSpec
from tasks import contents
from tasks.contents import ReleaseError, tree_digest
from tasks.releases import commit_of, resolve
from tests.tasks.repository import git, repository

__all__ = ["repository"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA = "sha256:" + "a" * 64


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "v1" / "bin").mkdir(parents=True)
    (tmp_path / "v1" / "bin" / "run").write_text("#!/bin/sh\n")
    (tmp_path / "v1" / "bin" / "run").chmod(0o755)
    (tmp_path / "v1" / "data").write_bytes(b"\0" * 3_000_000)
    (tmp_path / "v1" / "now").symlink_to("bin/run")
    return tmp_path / "v1"


def test_a_tree_has_one_digest_wherever_and_whenever_it_lies(tree: Path):
    first = tree_digest(tree)
    copy = tree.parent / "copy"
    shutil.copytree(tree, copy, symlinks=True)
    os.utime(copy / "data", (1, 1))
    assert tree_digest(copy) == first
    assert tree_digest(tree / "data") == f"sha256:{hashlib.sha256(bytes(3_000_000)).hexdigest()}"


@pytest.mark.parametrize(
    "change",
    [
        lambda it: (it / "data").write_bytes(b"\0" * 2_999_999 + b"1"),
        lambda it: (it / "bin" / "run").chmod(0o644),
        lambda it: (it / "data").rename(it / "date"),
        lambda it: (it / "empty").mkdir(),
        lambda it: ((it / "now").unlink(), (it / "now").symlink_to("data")),
        lambda it: ((it / "now").unlink(), (it / "now").write_text("bin/run")),
        lambda it: (it / "data").rename(it / "bin" / "data"),
    ],
)
def test_whatever_would_be_deployed_otherwise_changes_it(tree: Path, change):
    before = tree_digest(tree)
    change(tree)
    assert tree_digest(tree) != before


def test_what_cannot_be_read_is_one_line(tree: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ReleaseError, match="the release cannot be read: No such file or directory: v9"):
        resolve(Reference(Kind.PATH, "v9"), "v9", str(tree.parent))
    os.mkfifo(tree / "pipe")
    with pytest.raises(ReleaseError, match="neither file, folder nor link: pipe"):
        tree_digest(tree)
    (tree / "pipe").unlink()
    monkeypatch.setattr(contents, "MAX_FILES", 2)
    with pytest.raises(ReleaseError, match="more than 2 files"):
        tree_digest(tree)


def test_a_tag_or_branch_is_the_commit_it_is_at(repository: Path):
    first, second = git(repository, "rev-parse", "main~1"), git(repository, "rev-parse", "main")
    at = {"v1": first, "main": second, "feature/v2": second}
    assert {name: commit_of(str(repository), name) for name in at} == {name: f"git:{at[name]}" for name in at}
    with pytest.raises(ReleaseError, match="has no tag or branch v2"):  # feature/v2 only ends in it
        commit_of(str(repository), "v2")
    with pytest.raises(ReleaseError, match="the repository cannot be read"):
        commit_of(str(repository / "nothing"), "v1")


#: What would run something, were it an option, an address or a configuration of git's.
HOSTILE_VERSIONS = [
    "--upload-pack=touch {mark}", "-u", "--exec=touch {mark}", "v1 --upload-pack=touch {mark}", "v1;touch {mark}",
    "$(touch {mark})", "`touch {mark}`", "v1\ntouch {mark}", "v1|touch {mark}", "../../etc/passwd", "a/../b", "v1\0x",
    "@{{-1}}", "v1~1", "v1^", "refs/*", "v?", "[v]1", "", " ", "v1 ", "\u202ev1", "v" * 201, "'v1'", '"v1"', "v1&",
    "%2e%2e", "\\v1", "~root", "#v1", "!v1", "=v1", "-", "--", ".", "..",
]  # fmt: skip
HOSTILE_PLACES = [
    "git:ext::sh -c touch% {mark}", "git:--upload-pack=touch {mark}", "git:-oProxyCommand=touch {mark}",
    "git:ssh://-oProxyCommand=touch {mark}/x", "git:file:///etc", "git:fd::17", "git:", "git: /x", "git:relative/path",
    "git:https://h/a b", "git:https://h/{{version}}", "image:-v", "image:web:latest", "image:Web", "image:a/../b",
    "image:web;touch {mark}", "image:", "image:web@sha256:x", "../up", "a/../../b", "releases/{{other}}", "x\n",
    "http://user:pass@h/x", "https:///x", "releases/{{version", "",
]  # fmt: skip


@pytest.mark.parametrize("version", HOSTILE_VERSIONS)
def test_a_version_that_is_more_than_a_name_is_refused_when_it_is_asked_for(tmp_path: Path, version: str):
    mark = tmp_path / "mark"
    with pytest.raises(InvalidInput, match=r"^version: "):
        check(DeploymentSpec, {"version": version.format(mark=mark)})
    assert not mark.exists()


@pytest.mark.parametrize("artifact", HOSTILE_PLACES)
def test_a_place_that_is_more_than_an_address_is_refused_when_it_is_saved(tmp_path: Path, artifact: str):
    with pytest.raises(InvalidInput, match=r"^artifact: "):
        check(ApplicationConfiguration, {"artifact": artifact.format(mark=tmp_path / "mark")})


@pytest.mark.parametrize("version", ["--upload-pack=touch {mark}", "-u", "--help", "v1; touch {mark}"])
def test_even_unchecked_nothing_of_it_is_an_option_or_reaches_a_shell(repository: Path, version: str, tmp_path: Path):
    mark = tmp_path / "mark"
    for location, name in ((str(repository), version), (version, "v1"), (f"ext::touch% {mark}", "v1")):
        with pytest.raises(ReleaseError):
            commit_of(location.format(mark=mark), name.format(mark=mark))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("artifact", "version", "expected"),
    [
        ("releases/{version}", "v1", Reference(Kind.PATH, "releases/v1")),
        ("/srv/web.tar", "v1", Reference(Kind.PATH, "/srv/web.tar")),
        ("https://h/web-{version}.tgz", "v1", Reference(Kind.URL, "https://h/web-v1.tgz")),
        ("image:localhost:5000/shop/web", "v1", Reference(Kind.IMAGE, "localhost:5000/shop/web:v1")),
        ("image:web", SHA, Reference(Kind.IMAGE, f"web@{SHA}", SHA)),
        ("git:https://h/web.git", "v1", Reference(Kind.GIT, "https://h/web.git")),
        ("git:git@h:web.git", COMMIT, Reference(Kind.GIT, "git@h:web.git", f"git:{COMMIT}")),
        ("git:/srv/web", "feature/x", Reference(Kind.GIT, "/srv/web")),
    ],
)
def test_an_artifact_and_a_version_name_content(artifact, version, expected):
    check(ApplicationConfiguration, {"artifact": artifact})
    check(DeploymentSpec, {"version": version})
    assert reference(artifact, version) == expected
    if expected.digest:
        assert resolve(expected, version) == expected.digest


@pytest.mark.parametrize(
    ("artifact", "version"),
    [("image:web", "feature/x"), ("image:web", "sha256:abc"), ("image:web", "v1+2"), ("git:/srv/web", "a:b"),
     ("git:/srv/web", "a//b"), ("git:/srv/web", "a.lock"), ("git:/srv/web", "a/")],
)  # fmt: skip
def test_a_version_that_the_content_cannot_have_is_refused(artifact, version):
    check(DeploymentSpec, {"version": version})
    with pytest.raises(InvalidInput, match=r"^version: "):
        reference(artifact, version)
