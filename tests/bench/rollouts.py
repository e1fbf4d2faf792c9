"""A trivial command on 1 and on 20 servers: deployed by the platform, and run by a loop of plain ssh."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import count

from db.connection import get_db_session
from db.service import DatabaseService
from tests.bench.jobs import counters
from tests.bench.probers import spent
from tests.bench.report import Report
from tests.e2e.estate import Estate, estate_of
from tests.e2e.platform import Platform
from tests.tasks.sshd import CAN, NEEDS, Server

HOSTS = (1, 20)
IDLE_SECONDS = 10.0
TURNS = int(os.environ.get("BENCH_ROLLOUTS", "5"))


def against_ssh(bench: Platform, report: Report) -> None:
    """CPU seconds without the servers' own, time, and statements."""
    report.section(f"`true` on servers, {TURNS} times: CPU of all but the servers, beside a loop of plain ssh")
    if not CAN:
        report.figure("not measured", NEEDS)
        return
    worker = bench.worker("rollouts", "--without-mingle", "--without-gossip", processes=2)
    try:
        with contextmanager(estate_of)(bench, max(HOSTS)) as estate:
            with get_db_session() as session:
                application = DatabaseService(session).register_application("trivial", ["true"]).id
            for size in HOSTS:
                servers = estate.servers[:size]
                place = estate.add_infrastructure(f"first-{size}", servers)
                _deploy(bench, estate, application, place)
                _loop(servers)
                _compare(bench, report, servers, partial(_deploy, bench, estate, application, place), worker.pid)
    finally:
        bench.stop(worker)


def _deploy(bench: Platform, estate: Estate, application: int, place: int) -> int:
    """How often its status was looked at until it had ended."""
    with bench.database.connect() as connection:
        made = estate.deploy(app=application, place=place)
        for looks in count(1):
            time.sleep(0.05)
            row = connection.execute("SELECT status FROM deployments WHERE id = %s", [made.id]).fetchone()
            if row is not None and row[0] not in ("pending", "running"):
                assert row[0] == "success", bench.log_of(made.id)
                return looks
    raise AssertionError


@dataclass
class Spent:
    """Seconds of CPU and of the clock, and statements; or the rate of them."""

    worker: float
    database: float
    statements: float
    seconds: float

    @classmethod
    def until_now(cls, bench: Platform, worker: int) -> Spent:
        postmaster = bench.stack.postgres.pid
        assert postmaster is not None
        return cls(spent(worker), spent(postmaster), counters(bench)[1], time.monotonic())

    def since(self, before: Spent) -> Spent:
        return Spent(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))

    def without(self, idle: Spent) -> Spent:
        """What is left when what an idle platform does in the same time is taken off."""
        share = self.seconds / idle.seconds
        return Spent(
            self.worker - share * idle.worker, self.database - share * idle.database,
            self.statements - share * idle.statements, self.seconds,
        )  # fmt: skip


def _compare(
    bench: Platform, report: Report, servers: Sequence[Server], deploy: Callable[[], int], worker: int
) -> None:
    """Turns of both, each deployment without what an idle platform costs meanwhile."""
    before = Spent.until_now(bench, worker)
    time.sleep(IDLE_SECONDS)
    idle = Spent.until_now(bench, worker).since(before)
    ours: list[Spent] = []
    ssh_cpu = ssh_seconds = 0.0
    for _ in range(TURNS):
        usage, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        _loop(servers)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        ssh_seconds += (time.monotonic() - start) / TURNS
        ssh_cpu += (after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime) / TURNS
        before = Spent.until_now(bench, worker)
        looks = deploy()
        taken = Spent.until_now(bench, worker).since(before)
        ours.append(replace(taken, statements=taken.statements - looks).without(idle))
    mean = Spent(*(sum(column) / TURNS for column in zip(*map(astuple, ours), strict=True)))
    name = f"{len(servers)} server{'s' if len(servers) > 1 else ''}"
    report.figure(
        f"{name}: CPU, ours / ssh",
        f"{(mean.worker + mean.database) / ssh_cpu:.2f}   worker {1000 * mean.worker:.0f} ms, "
        f"PostgreSQL {1000 * mean.database:.0f} ms; ssh {1000 * ssh_cpu:.0f} ms",
    )
    report.figure(
        f"{name}: time, ours / ssh", f"{mean.seconds / ssh_seconds:.2f}   {mean.seconds:.2f} s; ssh {ssh_seconds:.2f} s"
    )
    report.figure(f"{name}: statements for one deployment", f"{mean.statements:.0f}")


def _loop(servers: Sequence[Server]) -> None:
    for server in servers:
        subprocess.run(
            [
                "ssh", "-F", "none", "-i", str(server.client_key), "-p", str(server.port), "-o", "BatchMode=yes",
                "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
                f"{server.user}@{server.address}", "true",
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
