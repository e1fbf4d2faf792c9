"""What auditing adds to writing: a table that `ops_audit_watch` has put under audit, against its twin that is not."""

from __future__ import annotations

import json
import subprocess
import time
import venv
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from sqlalchemy import update
from sqlalchemy.orm import Session

from db.connection import get_db_session
from tests.bench.peers import BULK, Base, columns, row
from tests.bench.report import Report
from tests.bench.servers import fresh_database
from tests.conftest import SCHEMA, Database
from tests.e2e.platform import Platform
from worker.servers import APP_ROLE, OWNER_ROLE

CASES = (("one row per transaction", 1, 300, 1.35), ("100 rows per transaction", 100, 30, 1.5))
UPDATES, UPDATE_TARGET = 8, 3.0
#: The latest releases, in an environment that is thrown away.
PEERS = ("postgresql-audit", "SQLAlchemy-Continuum")
NEEDED = ("sqlalchemy>=2.0", "psycopg[binary]>=3.2", *PEERS)
PEER = Path(__file__).parent / "peers.py"


Twin: Any = type("Twin", (Base,), {"__tablename__": "bench_twin", "__table_args__": {"schema": SCHEMA}, **columns()})


def on_and_off(database: Database, report: Report) -> None:
    """In turn, through sessions that say who acts; the median of each."""
    report.section("writing under audit, against the same without (a table like deployments, its indexes included)")
    with database.connect(OWNER_ROLE) as owner:
        owner.execute(f"CREATE TABLE {SCHEMA}.bench_twin (LIKE {SCHEMA}.deployments INCLUDING ALL)")
        owner.execute(f"GRANT SELECT, INSERT, UPDATE ON {SCHEMA}.bench_twin TO {APP_ROLE}")
        owner.execute(
            f"INSERT INTO {SCHEMA}.bench_twin (user_id, application_id, infrastructure_id, version, job_id)"
            f" SELECT 1, n % 50, n % 9, 'v' || n, gen_random_uuid() FROM generate_series(1, {BULK}) n"
        )
        numbers = count()
        for name, rows, rounds, target in CASES:
            _compare(report, owner, name, rounds, target, lambda session, rows=rows: _add(session, rows))
        name = f"UPDATE of {BULK} rows in one statement"
        _compare(report, owner, name, UPDATES, UPDATE_TARGET, lambda session: _change(session, next(numbers)))
        owner.execute(f"DROP TABLE {SCHEMA}.bench_twin")


def _compare(
    report: Report,
    owner: psycopg.Connection,
    name: str,
    rounds: int,
    target: float,
    write: Callable[[Session], None],
) -> None:
    seconds: dict[str, list[float]] = {"watch": [], "unwatch": []}
    turns = min(rounds, 5)
    for how in [*seconds] * (turns + 1):  # the first turn of each only warms up
        owner.execute(f"SELECT {SCHEMA}.ops_audit_{how}('{SCHEMA}.bench_twin')")
        times = []
        for _ in range(max(1, rounds // turns) + 1):
            start = time.perf_counter()
            with get_db_session(actor="anna", actor_id=7) as session:
                write(session)
            times.append(time.perf_counter() - start)
        seconds[how].append(median(times[1:]))
    on, off = (median(seconds[how][1:]) for how in ("watch", "unwatch"))
    report.at_most(f"{name}: on against off", on / off, target, f"{on * 1000:.2f} ms against {off * 1000:.2f} ms")


def _add(session: Session, rows: int) -> None:
    session.add_all([row(Twin, number) for number in range(rows)])


def _change(session: Session, number: int) -> None:
    session.execute(update(Twin).where(Twin.id <= BULK).values(version=f"w{number}"))


def beside_others(bench: Platform, report: Report) -> None:
    """Each tool in a process and a database of its own; what each adds to the same writing without it."""
    report.section("what auditing adds to the same writing by SQLAlchemy, beside other tools")
    python = bench.folder / "peers" / "bin" / "python"
    venv.create(bench.folder / "peers", with_pip=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *NEEDED],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        report.figure("not measured: they cannot be installed", done.stderr.strip().splitlines()[-1][:100])
        return
    added: dict[str, dict[str, float]] = {}
    for tool in ("ours", "unsearchable", *PEERS):
        said = _run(bench, str(python), tool)
        if isinstance(said, str):
            report.figure(f"not measured: {tool}", said)
            continue
        added[tool] = {case: with_ - without for case, (without, with_) in said.items()}
    for tool in PEERS:
        for case, what in (("one", "one row"), ("hundred", "100 rows"), ("update", f"UPDATE of {BULK} rows")):
            if tool in added and "ours" in added:
                ours, theirs = added["ours"][case], added[tool][case]
                bare = f"{added['unsearchable'][case] * 1000:.2f}" if "unsearchable" in added else "?"
                detail = (
                    f"+{ours * 1000:.2f} ms ({bare} without the indexes to search by) against +{theirs * 1000:.2f} ms"
                )
                report.at_most(f"{what}: what ours adds, against {tool}", ours / theirs, 1.0, detail)


def _run(bench: Platform, python: str, tool: str) -> dict[str, list[float]] | str:
    """The tool's times, or why there are none."""
    with fresh_database(bench.stack, "peers") as database:
        url = database.owner_url.replace("postgresql://", "postgresql+psycopg://")
        command = [python, str(PEER), tool, url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bench.folder)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1][:100]
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found
