"""Nothing that people name becomes a shell's or an option: refused when it is saved, or one quoted word."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from db.errors import InvalidInput
from db.rollouts import HostSpec, SshSettings
from db.specs import ApplicationConfiguration, DeploymentSpec, check
from tasks.drivers.artifacts import pack
from tasks.drivers.rollout import TargetError, batch_size
from tasks.drivers.shell import Scripts, is_release, release_name

#: What would do something where it is not one word, or is taken for an option. ``PWNED`` is the file it would make.
HOSTILE = [
    *(f"{start}{before}touch PWNED{after}" for start in ("", "1.0", "a'") for before, after in [
        (";", ""), ("&&", ""), ("||", ""), ("|", ""), ("&", ""), ("\n", ""), ("\r\n", ""), ("$(", ")"), ("`", "`"),
        ("${IFS}", ""), ("';", ";'"), ('";', ';"'), ("\\';", ""), ("\\\";", ""), ("x;", "#"), ("x\n", "\n"),
        ("<(", ")"), (">(", ")"), ("{", "}"), ("!", ""), ("x'$(", ")'"), ('x"$(', ')"'), ("a`", "`b"), ("EOF\n", ""),
        ("}</dev/null\n", ""), ("exit 0\n}\n", ""), ("\x0b", ""), ("\x0c", ""), ("\t;", ""), ("\u2028", ""),
    ]),
    *("-oProxyCommand=touch PWNED", "-oPermitLocalCommand=yes", "-F/tmp/x", "-i/tmp/x", "-l root", "-p 22", "-J evil",
      "-R 1:a:1", "-D 1", "-L1:a:1", "-w0", "-E/tmp/x", "-S/tmp/x", "-W a:1", "-Q key", "-V", "--help", "--", "-", "-n",
      "--checkpoint-action=exec=touch PWNED", "--checkpoint=1", "--to-command=touch PWNED", "-I touch",
      "--use-compress",
      "-C/", "--absolute-names", "-P", "--exec=touch PWNED", "--rsh=touch PWNED", "--rsync-path=touch PWNED",
       "--upload-pack=touch PWNED", "-u root", "--shell", "-s", "-k", "-c touch PWNED",
      "-e", "-rf", "-rf /", "-T", "-t/tmp", "--target-directory=/tmp", "-b", "--suffix=x", "-S x", "-v"),
    *("../x", "../../etc", "a/../../b", "/etc/passwd", "..", ".", "./x", "~", "~root", "~/x", "$HOME", "${HOME}", "$0",
      "*", "?", "[a-z]", "a b", "a\tb", "a\nb", "a\rb", "a\0b", "", " ", "\n", "'", '"', "\\", "`", "$", "(", ")", "<",
      ">", "|", "&", ";", "#x", "!x", "=x", "%n", "%00", "a'b", 'a"b', "a\\b", "a$b", "a;b", "a|b", "a&b", "a<b", "a>b",
      "a(b", "a)b", "a{b", "a}b", "a!b", "a^b", "é", "\u202e", "x" * 300, "user@host", "a@b@c", "a,b", "root:0", "a=b"),
]  # fmt: skip


def test_the_corpus_is_as_large_as_it_says():
    assert len(set(HOSTILE)) >= 200


def is_refused(model, field: str, value: str, **rest) -> bool:
    try:
        check(model, rest | {field: value})
    except InvalidInput:
        return True
    return False


def plan_with(**more: str) -> dict:
    settings = {"base": "/srv", "lock": None, "lock_seconds": 1.0, "keepalive_seconds": 1.0} | more
    return {
        "settings": settings,
        "environment": {"OPS_APPLICATION": "web", "OPS_INFRASTRUCTURE": "estate", "OPS_FENCE": "7"},
    }  # fmt: skip


@pytest.fixture
def sandbox(tmp_path: Path):
    """Run a script as a host would, in a folder in which a word that got loose leaves its mark."""

    def run(script: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            ["/bin/sh", "-s"], input=script.encode("utf-8", "surrogateescape"), cwd=tmp_path, capture_output=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, check=False, timeout=20,
        )  # fmt: skip
        assert not list(tmp_path.rglob("*PWNED*")), script
        return done

    return run


def test_names_that_could_be_more_than_names_are_refused():
    for value in HOSTILE:
        harmless = value in ("a=b", "user@host")
        assert is_refused(HostSpec, "name", value, address="a") or harmless, value
        assert is_refused(HostSpec, "address", value, name="a"), value
        assert is_refused(SshSettings, "user", value, key="a/b") or harmless, value
        assert is_refused(SshSettings, "sudo", value, user="a", key="a/b"), value


def test_a_version_that_is_let_in_is_one_safe_name_of_a_folder(sandbox, tmp_path):
    let_in = 0
    for value in [*HOSTILE, "1.0", "feature/x", "a+b", "1:2@3", "sha256:abc", "v1.0-rc1"]:
        if is_refused(DeploymentSpec, "version", value):
            continue
        let_in += 1
        name = release_name(value, "12", "7")
        assert is_release(name), value
        assert "/" not in name
        assert not name.startswith(("-", "."))
        assert shlex.quote(name) == name or "~" in name
        scripts = Scripts.of(plan_with(base=str(tmp_path)))
        assert sandbox(scripts.hold()).returncode == 0
        assert sandbox(scripts.unpack(name, "{}", None)).returncode == 0
        assert sandbox(scripts.finish(name)).returncode == 0
        assert sandbox(scripts.switch(name)).returncode == 0
        assert os.readlink(tmp_path / "web" / "current") == f"releases/{name}"  # noqa: PTH115
    assert let_in >= 6


def test_words_and_values_reach_a_command_as_they_are(sandbox, tmp_path):
    """Words of an argv and values of the environment may hold anything: each is one word there, and no more."""
    base = tmp_path / "b'a;s$e"
    scripts = Scripts.of(plan_with(base=str(base)))
    assert sandbox(scripts.hold()).returncode == 0
    for value in HOSTILE:
        if "\0" in value:
            continue
        argv = ["/bin/sh", "-c", 'printf "%s\\n%s" "$1" "$VALUE"', "sh", value]
        done = sandbox(scripts.command(".", argv, {"VALUE": value}, 10))
        assert done.returncode == 0, (value, done.stderr)
        assert done.stdout == f"{value}\n{value}".encode(), value


def test_an_artifact_that_could_lie_elsewhere_is_refused_when_it_is_saved():
    for value in (
        "../x",
        "a/../../b",
        "..",
        "",
        " a",
        "a ",
        "-x",
        "--help",
        "a/{host}",
        "{version",
        "a\0b",
        "x" * 3000,
    ):
        assert is_refused(ApplicationConfiguration, "artifact", value), value
    for value in ("dist", "releases/{version}", "/srv/artifacts/{version}.tar.gz"):
        assert not is_refused(ApplicationConfiguration, "artifact", value), value


def tar_of(path: Path, *members: tuple[str, bytes, str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o6777
            archive.addfile(info, io.BytesIO(b""))


BAD_MEMBERS = [
    [("../x", tarfile.REGTYPE, "")], [("/etc/x", tarfile.REGTYPE, "")], [("a/../../x", tarfile.REGTYPE, "")],
    [("a", tarfile.SYMTYPE, "/etc")], [("a", tarfile.SYMTYPE, "../x")], [("d/a", tarfile.SYMTYPE, "../../x")],
    [("a", tarfile.SYMTYPE, "b"), ("a/x", tarfile.REGTYPE, "")], [("a", tarfile.LNKTYPE, "/etc/passwd")],
    [("a", tarfile.LNKTYPE, "../x")], [("a", tarfile.LNKTYPE, "b")], [("a", tarfile.CHRTYPE, "")],
    [("a", tarfile.FIFOTYPE, "")], [("a", tarfile.REGTYPE, ""), ("a", tarfile.SYMTYPE, "b")],
    [("a", tarfile.REGTYPE, ""), ("a", tarfile.REGTYPE, "")], [(".ops.json", tarfile.REGTYPE, "")],
    [(".ops-previous", tarfile.REGTYPE, "")],
]  # fmt: skip


@pytest.mark.parametrize("members", BAD_MEMBERS, ids=repr)
def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path, members):
    tar_of(tmp_path / "a.tar", *members)
    with pytest.raises(TargetError):
        pack("a.tar", str(tmp_path), io.BytesIO())


def test_a_folder_with_a_link_out_of_it_is_refused(tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "link").symlink_to("/etc/passwd")
    with pytest.raises(TargetError, match="leads out of it"):
        pack("build", str(tmp_path), io.BytesIO())


def test_a_link_that_leads_out_of_the_working_folder_is_no_artifact(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "up").symlink_to("..")
    with pytest.raises(TargetError, match="outside"):
        pack("up", str(tmp_path / "work"), io.BytesIO())


def test_the_same_content_has_the_same_digest_and_a_change_another_one(tmp_path):
    (tmp_path / "build" / "d").mkdir(parents=True)
    (tmp_path / "build" / "d" / "a").write_text("1")
    (tmp_path / "build" / "l").symlink_to("d/a")
    first = pack("build", str(tmp_path), io.BytesIO())
    os.utime(tmp_path / "build" / "d" / "a", (1, 1))
    assert pack("build", str(tmp_path), io.BytesIO()) == first
    (tmp_path / "build" / "d" / "a").write_text("2")
    assert pack("build", str(tmp_path), io.BytesIO()) != first


def test_what_is_packed_keeps_no_special_bits(tmp_path):
    tar_of(tmp_path / "a.tar", ("x", tarfile.REGTYPE, ""), ("y", tarfile.LNKTYPE, "x"))
    made = io.BytesIO()
    pack("a.tar", str(tmp_path), made)
    made.seek(0)
    with tarfile.open(fileobj=made) as packed:
        found = [(each.name, each.mode) for each in packed]
    assert found == [("x", 0o755), ("y", 0o755)]


@pytest.mark.parametrize(
    ("policy", "count", "size"),
    [
        ({"strategy": "all", "batch": 3}, 20, 20), ({"strategy": "rolling", "batch": 3}, 20, 3),
        ({"strategy": "rolling", "batch": "10%"}, 20, 2), ({"strategy": "rolling", "batch": "10%"}, 3, 1),
        ({"strategy": "rolling", "batch": "100%"}, 7, 7), ({"strategy": "rolling", "batch": "0%"}, 7, 1),
    ],
)  # fmt: skip
def test_a_batch_has_at_least_one_host_and_a_share_is_rounded_up(policy, count, size):
    assert batch_size(policy, count) == size
