"""Runs the platform's processes on this machine: starts them, starts again what dies, stops them in order."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import structlog

from db.errors import Conflict, OpsError, Unavailable
from db.ledger import is_gone, process_key
from db.settings import SECRETS, get_settings
from tasks.supervisor import now
from worker.devstack import Stack

log = structlog.get_logger()

#: Locks on the ports that this process has been promised.
_reserved: list[int] = []
FLOWER_PORTS = range(5555, 5575)
SERVE_PORTS = range(8080, 8100)
_CELERY = ["-m", "celery", "-A", "worker.app"]
_OPS = ["-c", "from worker.cli import main; main()"]
#: After a process has died: the pause before it is started again, doubled each time, and forgotten once it has lived
#: for a minute.
FIRST_PAUSE, LONGEST_PAUSE, FORGET_SECONDS = 1.0, 30.0, 60.0
#: Between two tries to start a server that has died.
SERVERS_PAUSE = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass
class Member:
    """One process of the platform."""

    name: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0
    again_at: float = field(default=0.0)

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Foreman:
    """The processes of one data folder."""

    def __init__(self, stack: Stack, *, flower_port: int | None = None, serve_port: int | None = None) -> None:
        self.stack = stack
        self.flower_port = flower_port
        self.serve_port = serve_port
        self.members = [self._member(name, *arguments) for name, arguments in self._plan()]
        self._servers_at = 0.0

    def _plan(self) -> Iterable[tuple[str, list[str]]]:
        worker = [*_CELERY, "worker", "--loglevel=INFO", "--without-mingle", "--without-gossip"]
        yield "deployments", [*worker, "-n", "deployments@%h", "-Q", "deployments", "-c", "4"]
        yield "control", [*worker, "-n", "control@%h", "-Q", "control,checks", "-c", "2"]
        yield "beat-1", [*_CELERY, "beat", "--loglevel=INFO"]
        yield "beat-2", [*_CELERY, "beat", "--loglevel=INFO"]
        if self.serve_port is not None:
            yield "serve", [*_OPS, "serve", f"--port={self.serve_port}"]
        if self.flower_port is not None:
            yield "flower", [*_CELERY, "flower", "--address=127.0.0.1", f"--port={self.flower_port}"]

    def _member(self, name: str, *arguments: str) -> Member:
        return Member(name, list(arguments), self.stack.log_dir / f"{name}.log")

    def start(self) -> None:
        """Start every process."""
        for member in self.members:
            self._start(member)

    def look(self) -> None:
        """Start again what has died: the servers, then the processes."""
        try:
            self._look_at_servers()
        except (OpsError, OSError) as error:
            log.warning("server_not_started", error=str(error))
        for member in self.members:
            if member.is_alive:
                if member.deaths and now() - member.started_at > FORGET_SECONDS:
                    member.deaths = 0
            elif member.again_at == 0.0:
                pause = min(FIRST_PAUSE * 2**member.deaths, LONGEST_PAUSE)
                member.deaths += 1
                member.again_at = now() + pause
            elif now() >= member.again_at:
                try:
                    self._start(member)
                except OSError as error:  # no room for its log, no process left: the others run on
                    log.warning("process_not_started", name=member.name, error=str(error))

    def _look_at_servers(self) -> None:
        if now() < self._servers_at or (self.stack.postgres.pid is not None and self.stack.valkey.pid is not None):
            return
        self._servers_at = now() + SERVERS_PAUSE
        self.stack.start()
        log.info("servers_started")

    def stop(self) -> None:
        """Ask all to end, wait as long as a worker grants its jobs, then make them end."""
        for member in self.members:
            if member.is_alive and member.process is not None:
                member.process.terminate()
        end = time.monotonic() + get_settings().shutdown_seconds + 20
        for member in self.members:
            if member.process is None:
                continue
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.1, end - time.monotonic()))
            if member.is_alive:
                member.process.kill()
                member.process.wait()

    def _start(self, member: Member) -> None:
        member.again_at = 0.0
        member.started_at = now()
        with member.log.open("ab") as log:
            member.process = subprocess.Popen(
                [sys.executable, *member.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self.stack),
                start_new_session=True,  # Ctrl-C is for us; we end them in order
                preexec_fn=_end_with_parent,
            )


@contextlib.contextmanager
def only_one(stack: Stack) -> Iterator[None]:
    """While inside, this process alone runs the platform of this data folder. Raises Conflict when another does."""
    stack.make_folders()
    with (stack.data_dir / "up.pid").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = running_foreman(stack)
            raise Conflict(
                f"the platform runs already (process {other or 'unknown'})", hint="ops status, or ops down"
            ) from None
        _write(file, process_key(os.getpid()))
        try:
            yield
        finally:
            _write(file, "")


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def environment(stack: Stack) -> dict[str, str]:
    """What a process needs to join this stack, and not another that the caller's environment may name."""
    kept = {name: value for name, value in os.environ.items() if name not in _OTHERS}
    return kept | {"OPS_DATA_DIR": str(stack.data_dir), "PYTHONUNBUFFERED": "1"} | read_env(stack)


_OTHERS = {*SECRETS, *(f"{name}_FILE" for name in SECRETS), "CELERY_BROKER_URL", "REDIS_URL", "OPS_ENCRYPTION_PRIMARY"}


def read_env(stack: Stack) -> dict[str, str]:
    """The stack's own env file."""
    lines = (line.partition("=") for line in stack.env_file.read_text("utf-8").splitlines())
    return {name: value for name, _, value in lines if value and not name.startswith("#")}


def join(stack: Stack) -> None:
    """Make this very process use the stack, whatever its environment said before."""
    for name in _OTHERS:
        os.environ.pop(name, None)
    os.environ.update(environment(stack))
    get_settings.cache_clear()


def running_foreman(stack: Stack) -> int | None:
    """The process that runs this stack's platform, or None."""
    try:
        key = (stack.data_dir / "up.pid").read_text().strip()
        return None if is_gone(key) else int(key.partition(":")[0])
    except (OSError, ValueError):
        return None


def stop_foreman(stack: Stack, seconds: float = 120.0) -> bool:
    """Ask the foreman to stop everything, and wait; False when none runs. Raises Unavailable when it does not end."""
    pid = running_foreman(stack)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while running_foreman(stack) is not None:
        if time.monotonic() > end:
            raise Unavailable(f"process {pid} does not end", hint=f"kill -9 {pid}, then ops down")
        time.sleep(0.1)
    return True


def free_port(wanted: int | None, ports: range = FLOWER_PORTS, option: str = "--port") -> int:
    """The wanted port, or the first free one of these, which no other foreman of this user takes while this process
    lives. Raises Conflict when it is taken; ``option`` of `ops up` names another."""
    for port in [wanted] if wanted is not None else ports:
        with contextlib.suppress(OSError), socket.socket() as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(("127.0.0.1", port))
            if wanted is None:
                _reserve(port)
            return port
    taken = f"port {wanted} is" if wanted is not None else f"ports {ports[0]} to {ports[-1]} are"
    raise Conflict(f"{taken} taken", hint=f"ops up {option} ANOTHER")


def _reserve(port: int) -> None:
    """It is bound seconds from now. Raises OSError where another foreman has it."""
    path = Path(tempfile.gettempdir()) / f"ops-{os.getuid()}-port-{port}.lock"
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    _reserved.append(lock)


def _end_with_parent() -> None:
    """In the child: a foreman that is killed takes its processes along."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
