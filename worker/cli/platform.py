"""`ops up`, `ops down`, `ops relay`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from db.errors import Conflict, OpsError, Unavailable
from db.settings import DATA_DIR_NAME, find_data_dir
from worker import foreman
from worker.cli.output import make_table, out
from worker.devstack import Stack

#: Written once everything answers; holds the foreman's process id.
READY = "up.ready"
READY_SECONDS = 90.0


#: Beyond this the log of `ops up --detach` begins anew.
LOG_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Ports:
    """What listens on this machine's loopback."""

    flower: int
    serve: int

    @classmethod
    def free(cls, flower: int | None, serve: int | None) -> Ports:
        """Those that are wanted, or free ones. Raises Conflict."""
        return cls(foreman.free_port(flower), foreman.free_port(serve, foreman.SERVE_PORTS, option="--serve-port"))


class _Stop(Exception):
    """Somebody asked for the end."""


_asked = threading.Event()


def here() -> Stack:
    """The stack of this folder: the one found upwards, else a new one here."""
    return Stack(find_data_dir() or Path.cwd() / DATA_DIR_NAME)


def up(*, detach: bool, port: int | None, serve_port: int | None, view: bool) -> int:
    """Run everything until Ctrl-C or TERM; with ``detach`` in the background. Answers the exit code."""
    stack = here()
    other = foreman.running_foreman(stack)
    if other is not None:
        raise Conflict(f"the platform runs already (process {other})", hint="ops status, or ops down")
    stack.make_folders()
    if detach:
        return _detach(stack, port, serve_port)
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, _raise_stop)
    ports = Ports.free(port, serve_port)
    with contextlib.suppress(_Stop), foreman.only_one(stack):
        _up(stack, ports, view=view)
    return 0


def _up(stack: Stack, ports: Ports, *, view: bool) -> None:
    crew: foreman.Foreman | None = None
    try:
        prepare(stack, say=out.note)
        crew = foreman.Foreman(stack, flower_port=ports.flower, serve_port=ports.serve)
        crew.start()
        _wait_until_ready(crew, ports)
        _say_where(stack, ports)
        (stack.data_dir / READY).write_text(f"{os.getpid()} {ports.flower} {ports.serve}")
        _run(crew, view=view and out.is_terminal)
    except _Stop:
        pass
    finally:
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # the terminal may be gone, or its file's disk be full
            out.note("stopping: workers finish or give back what they hold")
        (stack.data_dir / READY).unlink(missing_ok=True)
        if crew is not None:
            crew.stop()
        _let_go_of_database()
        stack.stop()
        with contextlib.suppress(OSError):
            out.note("stopped; data stays in " + str(stack.data_dir))


def prepare(stack: Stack, say: Any) -> None:
    """Servers, migrations, the first admin; this process uses the stack from then on."""
    from db import migrate
    from db.services import sample
    from worker.cli import acting

    say(f"starting PostgreSQL and Valkey in {stack.data_dir}")
    stack.start()
    foreman.join(stack)
    say("applying migrations")
    migrate.upgrade()
    sample.first_admin(acting.user_name())


def down() -> None:
    """Stop the platform and its servers. Nothing running is fine, too."""
    stack = here()
    if not stack.data_dir.is_dir():
        out.result({"stopped": False}, f"nothing runs here; there is no {stack.data_dir}")
        return
    stopped = foreman.stop_foreman(stack)
    was_up = stack.postgres.pid is not None or stack.valkey.pid is not None
    stack.stop()
    words = "the platform is stopped" if stopped else "the servers are stopped" if was_up else "nothing runs here"
    out.result({"stopped": stopped or was_up}, f"{words}; data stays in {stack.data_dir}")


def relay() -> None:
    """The relay and the rescue without a worker, until stopped."""
    from worker.app import app
    from worker.publish import Line
    from worker.relay import Relay

    # Waited for, not caught: the loop survives every exception, and one from a signal's handler would be no other.
    asked = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    loop = Relay(Line(app), f"relay@{socket.gethostname()}", kind="relay")
    loop.start()
    out.note("relaying; Ctrl-C stops")
    signal.sigwait(asked)
    loop.stop()


def _detach(stack: Stack, port: int | None, serve_port: int | None) -> int:
    """Start this very command in the background, and wait until it says that it is ready, or why not."""
    wanted = [("--port", port), ("--serve-port", serve_port)]
    for option, number in wanted:
        if number is not None:
            foreman.free_port(number, option=option)
    log = stack.log_dir / "up.log"
    # Another may be starting and write there too: nothing of it is removed, and only what comes from now on is read.
    if not log.exists() or log.stat().st_size > LOG_BYTES:
        log.write_bytes(b"")
    begin = log.stat().st_size
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "from worker.cli import main; main()", "up", "--no-view",
             *(word for option, number in wanted if number is not None for word in (option, str(number)))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {"OPS_DATA_DIR": str(stack.data_dir)},
        )  # fmt: skip
    end = time.monotonic() + READY_SECONDS + 30
    while (ports := _ready_ports(stack, process.pid)) is None:
        if process.poll() is not None:
            printed = log.read_bytes()[begin:].decode(errors="replace")
            lines = [line for line in printed.splitlines() if line.startswith("error:")]
            said = (lines or ["error: the platform did not start"])[-1][7:]
            if process.returncode == Conflict.exit_code:  # somebody was faster
                raise Conflict(said, hint="ops status, or ops down")
            raise Unavailable(said, hint=f"its log: {log}")
        if time.monotonic() > end:
            raise Unavailable("the platform does not become ready", hint=f"its log: {log}")
        time.sleep(0.1)
    process.returncode = 0  # it lives on without us
    where = _where(stack, ports)
    out.result({"pid": process.pid, **where}, "the platform runs in the background", *_lines(where))
    out.line("next: ops status   ops db init --sample   ops down")
    return 0


def _ready_ports(stack: Stack, pid: int) -> Ports | None:
    """Once this process has said that everything is up."""
    try:
        said, flower, serve = (stack.data_dir / READY).read_text().split()
        return Ports(int(flower), int(serve)) if said == str(pid) else None
    except (OSError, ValueError):
        return None


def _wait_until_ready(crew: foreman.Foreman, ports: Ports) -> None:
    """Until every worker and beat has said in the database that it lives, and the others listen. Raises Unavailable."""
    from db.connection import get_db_session
    from db.repositories.stats import StatsRepository

    doors = {"flower": ports.flower, "serve": ports.serve}
    wanted = {m.process.pid for m in crew.members if m.process is not None and m.name not in doors}
    end = time.monotonic() + READY_SECONDS
    while True:
        with get_db_session() as session:
            seen = {each.pid for each in StatsRepository(session).processes()}
        dead = [member for member in crew.members if not member.is_alive]
        # One that died on its port listens no less than another program that has taken it.
        closed = [name for name, port in doors.items() if not _listens(port)]
        if wanted <= seen and not dead and not closed:
            return
        if dead or time.monotonic() > end:
            late = dead or [m for m in crew.members if m.process is not None and m.process.pid in wanted - seen]
            names = ", ".join([member.name for member in late] or closed)
            raise Unavailable(f"{names} did not come up", hint=f"the logs are in {crew.stack.log_dir}")
        _rest(0.1)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _run(crew: foreman.Foreman, *, view: bool) -> None:
    if not view:
        while True:
            crew.look()
            _rest(0.5)
    from rich.live import Live

    with Live(_screen(crew), console=out.console, refresh_per_second=2, transient=False) as live:
        while True:
            crew.look()
            live.update(_screen(crew))
            _rest(1.0)


def _screen(crew: foreman.Foreman) -> Any:
    """Processes and queues, as a table under the other."""
    from rich.console import Group
    from rich.text import Text

    rows = [
        (m.name, m.process.pid if m.process else None, "running" if m.is_alive else "started again soon", str(m.log))
        for m in crew.members
    ]
    parts: list[Any] = [make_table("processes", ("name", "pid", "", "log"), rows)]
    try:
        from db.connection import get_db_session
        from db.repositories.stats import StatsRepository

        with get_db_session() as session:
            stats = StatsRepository(session)
            queues = [(q.queue, q.queued, q.due, q.running, q.oldest_due) for q in stats.queues()]
            alerts = stats.open_alerts()
        parts.append(make_table("queues", ("queue", "queued", "due", "running", "oldest due"), queues))
        parts.append(Text(f"open alerts: {alerts}    Ctrl-C stops everything", style="dim"))
    except OpsError as error:
        parts.append(Text(str(error), style="red"))
    return Group(*parts)


def _where(stack: Stack, ports: Ports) -> dict[str, str]:
    values = foreman.read_env(stack)
    user, _, password = values.get("FLOWER_BASIC_AUTH", "").partition(":")
    return {"serve": f"http://127.0.0.1:{ports.serve}", "flower": f"http://127.0.0.1:{ports.flower}",
            "flower_user": user, "flower_password": password, "settings": str(stack.env_file)}  # fmt: skip


def _lines(where: dict[str, str]) -> list[str]:
    return [
        f"status    {where['serve']}   metrics {where['serve']}/metrics",
        f"Flower    {where['flower']}   user {where['flower_user']}   password {where['flower_password']}",
        f"settings  {where['settings']}",
    ]


def _say_where(stack: Stack, ports: Ports) -> None:
    for line in _lines(_where(stack, ports)):
        out.line(line)


def _let_go_of_database() -> None:
    from db import connection

    connection.dispose()


def _raise_stop(_number: int, _frame: FrameType | None) -> None:
    _asked.set()
    raise _Stop


def _rest(seconds: float) -> None:
    """Wait, and stop where that was asked for: what is raised in a signal's handler may be lost in a destructor."""
    time.sleep(seconds)
    if _asked.is_set():
        raise _Stop
