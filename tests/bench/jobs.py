"""Jobs and deployments through real workers: latency, what one costs the database, throughput against plain Celery."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from db.connection import get_db_session
from tests.bench.report import Report, percentile
from tests.e2e.platform import Platform
from tests.e2e.process import until

STARTS = int(os.environ.get("BENCH_STARTS", "60"))
DEPLOYMENTS = int(os.environ.get("BENCH_DEPLOYMENTS", "20"))
JOBS = int(os.environ.get("BENCH_JOBS", "3000"))


def against_celery(bench: Platform, report: Report) -> None:
    start_workers(bench)
    latency(bench, report)
    costs(bench, report)
    throughput(bench, report)


def start_workers(bench: Platform) -> None:
    plain = {name: os.environ[name] for name in ("PLAIN_BROKER_URL", "PLAIN_DATABASE_URL")}
    options = ("--without-mingle", "--without-gossip", "--without-heartbeat")
    bench.worker("durable", *options, processes=2, queues="control,deployments", app="tests.bench.app")
    worker = bench.start(
        "plain", "-m", "celery", "-A", "tests.bench.plain", "worker", "-n", "plain@%h", "-c", "2", "-Q", "plain",
        "--loglevel=INFO", *options, **plain,
    )  # fmt: skip
    until(lambda: "ready" in worker.text, "the plain worker is ready")


def latency(bench: Platform, report: Report) -> None:
    """From the commit (the publish) to the first line of the body; one at a time, the workers idle."""
    from tests.bench import plain
    from tests.bench.app import app
    from tests.bench.durable import stamp

    assert app is not None
    report.section(f"latency of one job on idle workers, {STARTS} each, in turn: from commit or publish to the start")
    waits: dict[str, list[float]] = {"plain": [], "durable": [], "begin": [], "command": []}
    files = {name: bench.folder / f"{name}.stamps" for name in waits}

    def timed(name: str, ask: Any) -> None:
        seen = len(_stamps(files[name]))
        ask(str(files[name]))
        asked = time.time()
        until(lambda: len(_stamps(files[name])) > seen, f"{name} started")
        waits[name].append(_stamps(files[name])[-1] - asked)

    def enqueue(path: str) -> None:
        with get_db_session() as session:
            stamp.enqueue(session, path)

    for number in range(STARTS):
        timed("plain", plain.stamp.delay)
        timed("durable", enqueue)
        if number % 3 == 0:
            _one_deployment(bench, files["command"], waits)
    base = waits["plain"]
    for name, what, target in (
        ("durable", "durable task, commit to body", 5.0),
        ("begin", "deployment, commit to begin (the driver is let go)", 15.0),
        ("command", "deployment, commit to the command's first line", 60.0),
    ):
        for share in (0.5, 0.99):
            ours, theirs = percentile(waits[name], share), percentile(base, share)
            detail = f"{ours * 1000:.1f} ms against {theirs * 1000:.1f} ms of plain Celery"
            if share == 0.5:
                report.at_most(f"{what}, p50", ours / theirs, target, detail)
            else:
                report.figure(f"{what}, p99", detail)


def _one_deployment(bench: Platform, stamps: Path, waits: dict[str, list[float]]) -> None:
    from db.models import Deployment, Job

    number, job, asked = _deploy(bench, f"date +%s.%N >> {stamps}")
    seen = len(waits["command"])
    until(lambda: len(_stamps(stamps)) > seen, "the command ran")
    bench.wait_ended(_Deployed(number, str(job)))
    with get_db_session() as session:
        assert session.get(Deployment, number) is not None
        began = session.get_one(Job, job).began_at
    assert began is not None
    waits["begin"].append(began.timestamp() - asked)
    waits["command"].append(_stamps(stamps)[-1] - asked)


class _Deployed:
    """As :class:`tests.e2e.platform.Deployed`, for a command of our own."""

    def __init__(self, id: int, job: str) -> None:
        self.id, self.job, self.key = id, job, ""


def _deploy(bench: Platform, line: str) -> tuple[int, Any, float]:
    """Ask for a deployment of a shell line; answers its number, its job and when the commit had returned."""
    from db.repositories import ApplicationRepository, InfrastructureRepository, UserRepository
    from db.service import DatabaseService

    with get_db_session() as session:
        service = DatabaseService(session)
        user = UserRepository(session).get_by_username("bench") or service.create_user_with_audit(
            "bench", "b@b.example"
        )
        name = f"bench-{abs(hash(line)) % 10**8}"
        application = ApplicationRepository(session).get_by_name(name) or service.register_application(
            name, [line], configuration={"shell": True}
        )
        place = InfrastructureRepository(session).get_by_name("bench") or service.register_infrastructure(
            "bench", user.id
        )
        made = service.create_deployment(user.id, application.id, place.id, "1")
        number, job = made.id, made.job_id
    return number, job, time.time()


def costs(bench: Platform, report: Report) -> None:
    """What one deployment of a trivial command costs the database, from asking to its end."""
    report.section(f"what one deployment costs the database ({DEPLOYMENTS} of `true`, one after the other)")

    def measure(work: Any) -> tuple[float, int, int]:
        bench.rows("SELECT 1", role="postgres")
        before = counters(bench)
        start = time.monotonic()
        work()
        after = counters(bench)
        return time.monotonic() - start, after[0] - before[0], after[1] - before[1]

    looks = 0

    def deploy_all() -> None:
        nonlocal looks
        with bench.database.connect() as look:
            for _ in range(DEPLOYMENTS):
                number, _job, _asked = _deploy(bench, "true")
                status = "pending"
                while status in ("pending", "running"):
                    time.sleep(0.02)
                    looks += 1
                    row = look.execute("SELECT status FROM deployments WHERE id = %s", [number]).fetchone()
                    status = row[0] if row else ""

    _deploy(bench, "true")  # what is registered once is not what one deployment costs
    seconds, transactions, statements = measure(deploy_all)
    idle_seconds, idle_transactions, idle_statements = measure(lambda: time.sleep(5))
    transactions -= looks + round(idle_transactions * seconds / idle_seconds)
    statements -= looks + round(idle_statements * seconds / idle_seconds)
    report.at_most(
        "transactions per deployment", transactions / DEPLOYMENTS, 16, "what an idle platform does taken off"
    )
    report.at_most(
        "round trips per deployment", statements / DEPLOYMENTS, 60, "statements called from outside, all of them"
    )


def counters(bench: Platform) -> tuple[int, int]:
    """Transactions that committed in the database, and statements that clients sent."""
    rows = bench.rows(
        """SELECT (SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()) AS x,
          (SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
           WHERE d.datname = current_database() AND s.toplevel) AS c""",
        role="postgres",
    )
    return rows[0]["x"], rows[0]["c"]


def throughput(bench: Platform, report: Report) -> None:
    """Jobs that write the same rows: durable ones, and plain Celery with SQLAlchemy."""
    from sqlalchemy.orm import Session

    from tests.bench import plain
    from tests.bench.durable import work

    report.section(f"{JOBS} jobs that do nothing, two processes each: rows and audit entries written, per second")
    plain.Base.metadata.create_all(plain.engine)

    def run_durable() -> None:
        with get_db_session() as session:
            for _ in range(JOBS):
                work.enqueue(session)
        until(lambda: not bench.rows("SELECT 1 FROM jobs WHERE state IN ('queued', 'running') LIMIT 1"), "all ran", 600)

    def run_plain() -> None:
        with Session(plain.engine) as session:
            for _ in range(JOBS):
                plain.submit(session)
        with Session(plain.engine) as session:
            left = plain.PlainJob.__table__.select().where(plain.PlainJob.state != "succeeded").limit(1)
            until(lambda: session.execute(left).first() is None, "all ran", 600)

    rates = {}
    for name, run in (("plain", run_plain), ("durable", run_durable)):
        start = time.monotonic()
        run()
        rates[name] = JOBS / (time.monotonic() - start)
    ratio = rates["durable"] / rates["plain"]
    detail = f"{rates['durable']:.0f}/s against {rates['plain']:.0f}/s of plain Celery with SQLAlchemy"
    report.at_least("durable jobs against plain Celery with the same rows", ratio, 1.0, detail)


def _stamps(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()] if path.is_file() else []
