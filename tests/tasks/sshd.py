"""Real ssh servers of this user on loopback addresses: started for a test, stopped and removed after it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.process import descendants, frozen
from tests.guardian import end_with_us

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
CAN = SSHD is not None and os.geteuid() == 0
NEEDS = "needs Debian's openssh-server, and root to give each host a file system of its own"


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@dataclass
class Server:
    """One `sshd` on an address of its own, with a file system of its own at ``mount``: a folder, or so much memory."""

    name: str
    address: str
    folder: Path
    client_key: Path
    mount: Path
    memory: str | None = None
    #: What sessions get beside the usual, and the program that takes uploads.
    environment: dict[str, str] = field(default_factory=dict)
    sftp: str = "internal-sftp"
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        make_key(self.folder / "host_key")
        (self.folder / "authorized").write_text(self.client_key.with_suffix(".pub").read_text())
        (self.folder / "authorized").chmod(0o600)
        (self.folder / "srv").mkdir()
        self.mount.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            self.port = probe.getsockname()[1]

    @property
    def base(self) -> Path:
        """What is at ``mount`` there, as it is seen from here."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.mount}") if self.memory else self.folder / "srv"

    @property
    def host_key(self) -> str:
        return (self.folder / "host_key.pub").read_text().strip()

    @property
    def user(self) -> str:
        return getpass.getuser()

    def start(self, *options: str) -> Server:
        assert SSHD is not None
        os.makedirs("/run/sshd", exist_ok=True)  # noqa: PTH103 - where sshd wants it, when root starts it
        config = self.folder / "config"
        environment = " ".join(
            f"{name}={value}" for name, value in {"HOST_NAME": self.name, **self.environment}.items()
        )
        lines = [
            f"ListenAddress {self.address}:{self.port}", f"HostKey {self.folder / 'host_key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized'}", "StrictModes no", "UsePAM no",
            f"PidFile {self.folder / 'pid'}", "PasswordAuthentication no", "PermitRootLogin yes", "LogLevel ERROR",
            "MaxStartups 100:30:200", "MaxSessions 50", f"Subsystem sftp {self.sftp}", f"SetEnv {environment}",
            *options,
        ]  # fmt: skip
        config.write_text("\n".join(lines) + "\n")
        log = (self.folder / "log").open("ab")
        kind = ["-t", "tmpfs", "-o", f"size={self.memory}", "none"] if self.memory else ["--bind", self.folder / "srv"]
        mount = shlex.join(map(str, ["mount", *kind, self.mount]))
        apart = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        self.process = subprocess.Popen(
            [*apart, SSHD, "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
        )  # fmt: skip
        end_with_us(self.process.pid, str(config))
        log.close()
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), 1):
                return self
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "sshd does not answer"
            time.sleep(0.02)

    def cut(self) -> None:
        """End every connection, as a cable would: what runs on the host goes on."""
        assert self.process is not None
        for child in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if b"sshd" in Path(f"/proc/{child}/cmdline").read_bytes()[:16]:
                    os.kill(child, 9)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nobody meanwhile, and its connections stand: as a machine that hangs."""
        assert self.process is not None
        with frozen([self.process.pid, *descendants(self.process.pid)]):
            yield

    def replace(self, path: str, text: str) -> None:
        """Let a file of this machine be another one for this server."""
        assert self.process is not None
        mine = self.folder / Path(path).name
        mine.write_text(text)
        mine.chmod(0o440)
        there = ["nsenter", "-t", str(self.process.pid), "-m", "mount", "--bind", str(mine), path]
        subprocess.run(there, check=True)

    def stop(self) -> None:
        if self.process is None:
            return
        self.cut()
        self.process.kill()
        self.process.wait()
        self.process = None

    # What is on the host ---------------------------------------------------------------------------------------------

    def app(self, name: str = "web") -> Path:
        return self.base / name

    def current(self, name: str = "web") -> str | None:
        link = self.app(name) / "current"
        return Path(os.readlink(link)).name if link.is_symlink() else None  # noqa: PTH115
