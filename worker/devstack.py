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
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from db.encryption import new_key
from db.errors import Refused, SettingsError
from db.seals import new_pair
from db.settings import KEY_VARIABLES
from worker.servers import APP_ROLE, DATABASE, OWNER_ROLE, POSTGRES_SOCKET, VALKEY_SOCKET, Postgres, Valkey

#: The longest path of a unix socket that Linux takes is 107 bytes; macOS takes 103.
SOCKET_PATH_LIMIT = 103


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
        if plain and len(os.fsencode(run / POSTGRES_SOCKET)) <= SOCKET_PATH_LIMIT:
            return run
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"ops-{os.getuid()}-{digest}"

    @property
    def is_running(self) -> bool:
        return self.postgres.is_running and self.valkey.is_running

    @property
    def broker_url(self) -> str:
        return f"redis+socket://{self.run_dir / VALKEY_SOCKET}?virtual_host=0"

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
        """Raises SettingsError where nothing can be written, Refused where somebody else has been."""
        as_root = os.geteuid() == 0
        try:
            self.data_dir.mkdir(mode=0o711 if as_root else 0o700, parents=True, exist_ok=True)
            self.log_dir.mkdir(mode=0o700, exist_ok=True)
            ignore = self.data_dir / ".gitignore"
            ignore.write_text("*\n")
            ignore.chmod(0o600)
        except OSError as error:
            raise SettingsError(
                f"cannot write to {self.data_dir}: {error.strerror}", hint="OPS_DATA_DIR=/another/folder ops ..."
            ) from None
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
        # Mode 0600: whoever can open it, even for reading, can hold it.
        lock = os.open(self.data_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(lock, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write_env(self) -> None:
        """Addresses as they are now; secrets as they were made the first time, and what was added since."""
        known: dict[str, str] = {}
        if self.env_file.is_file():
            lines = (line.partition("=") for line in self.env_file.read_text("utf-8").splitlines())
            known = {name: value for name, _, value in lines if value and not name.startswith("#")}
        values = known | {
            "DATABASE_URL": self.database_url(),
            "OPS_DATABASE_OWNER_URL": self.database_url(role=OWNER_ROLE),
            "OPS_BROKER_URL": self.broker_url,
            "SECRET_KEY": known.get("SECRET_KEY") or secrets.token_urlsafe(48),
            "OPS_AUDIT_SEAL_KEY": known.get("OPS_AUDIT_SEAL_KEY") or new_pair()[0],
            # What is tried out here runs on this host.
            "OPS_PROBE_ALLOW": known.get("OPS_PROBE_ALLOW") or "127.0.0.1/32,::1/128",
            "FLOWER_BASIC_AUTH": known.get("FLOWER_BASIC_AUTH") or f"ops:{secrets.token_urlsafe(12)}",
        }
        if not any(known.get(name) for name in KEY_VARIABLES):  # one that was retired does not come back
            values["ENCRYPTION_KEY"] = new_key()
        text = "# Written by `ops up` for this folder's own servers. Secrets: keep it to yourself.\n"
        text += "".join(f"{name}={value}\n" for name, value in values.items())
        if self.env_file.is_file() and self.env_file.read_text("utf-8") == text:
            return
        fresh = self.env_file.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        fresh.replace(self.env_file)
