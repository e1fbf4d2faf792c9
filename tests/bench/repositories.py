"""The transactions of a deployment's life, against the very same statements sent by pgbench."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from sqlalchemy import event

from db.connection import get_db_session, get_engine, open_ledger
from db.ledger import Ledger
from db.repositories import ApplicationRepository, InfrastructureRepository, UserRepository
from db.service import DatabaseService
from db.services.deployments import RUN_TASK
from tests.bench.report import Report
from tests.bench.servers import pgbench
from tests.conftest import SCHEMA, Database
from worker.servers import APP_ROLE

LIVES = int(os.environ.get("BENCH_LIVES", "60"))
ROUNDS = 12
TARGET = 0.5
#: Numbers of deployments begin here, so that the one of a recorded life is found again in all that is made of it.
FIRST = 7_000_001
HOLDERS = ["4242:424242"]


def against_pgbench(database: Database, report: Report) -> None:
    """In short rounds, in turn; the median of what each pair of rounds gives."""
    report.section(f"create, claim and begin, finish a deployment: against the same SQL in pgbench, {LIVES} x {ROUNDS}")
    asked = _register()
    ledger = open_ledger("bench")
    with database.connect("postgres") as server:
        server.execute(f"ALTER TABLE {SCHEMA}.deployments ALTER COLUMN id RESTART WITH {FIRST}")
    statements = _record(database, asked)
    report.figure("statements of one life, with BEGIN and COMMIT", str(len(statements)))
    script = database.stack.data_dir.parent / "life.sql"
    script.write_text(_script(statements))
    ours, theirs = [], []
    for _ in range(ROUNDS):
        theirs.append(pgbench(database, script, "-c", "1", "-t", str(LIVES)))
        start = time.perf_counter()
        for _ in range(LIVES):
            _live(ledger, asked)
        ours.append(LIVES / (time.perf_counter() - start))
    ledger.close()
    detail = f"{median(ours):.0f}/s against {median(theirs):.0f}/s"
    ratio = median(each / other for each, other in zip(ours, theirs, strict=True))
    report.at_least("deployments' lives, against pgbench", ratio, TARGET, detail)


def _register() -> dict[str, int]:
    with get_db_session() as session:
        service = DatabaseService(session)
        user = UserRepository(session).get_by_username("life") or service.create_user_with_audit("life", "l@b.example")
        application = ApplicationRepository(session).get_by_name("life") or service.register_application(
            "life", ["true"]
        )
        place = InfrastructureRepository(session).get_by_name("life") or service.register_infrastructure(
            "life", user.id
        )
        return {"user_id": user.id, "application_id": application.id, "infrastructure_id": place.id}


def _live(ledger: Ledger, asked: dict[str, int]) -> tuple[int, UUID]:
    """From the request to the end; answers the numbers of the deployment and of its job."""
    with get_db_session() as session:
        deployment = DatabaseService(session).create_deployment(**asked, version="v1")
        number, job = deployment.id, deployment.job_id
    assert job is not None
    claim = ledger.claim(job, RUN_TASK, job, worker="bench", host="bench", holders=HOLDERS)
    assert claim.verdict == "run"
    assert ledger.begin(job, claim.attempt, job, HOLDERS) == "go"
    state, _ = ledger.finish(job, claim.attempt, job, "ok", result={"message": "done"})
    assert state == "succeeded"
    return number, job


def _record(database: Database, asked: dict[str, int]) -> list[str]:
    """The statements of one life as pgbench takes them: numbers and ids that differ each time are variables."""
    found: list[tuple[str, Any]] = []
    with _listening(found):
        number, job = _live(_Listening("", SCHEMA, found, open_ledger("bench")), asked)
    varying = {str(number): "CAST(:id AS text)", job.hex: "lpad(CAST(:job AS text), 32, '0')"}
    first = next(index for index, (statement, _) in enumerate(found) if statement.startswith("SELECT * FROM"))
    found.insert(first, ("COMMIT", None))
    with database.connect(APP_ROLE) as connection:
        return ["BEGIN", *(_literal(statement, values, varying, connection) for statement, values in found)]


class _Listening(Ledger):
    """Notes what it is asked, and lets another answer."""

    def __init__(self, conninfo: str, schema: str, found: list[tuple[str, Any]], other: Ledger) -> None:
        super().__init__(conninfo, schema)
        self._found, self._other = found, other

    def _query(self, statement: str, arguments: tuple[Any, ...], patience: Any = None) -> list[dict[str, Any]]:
        self._found.append((statement.format(schema=SCHEMA), arguments))
        return self._other._query(statement, arguments, patience)


@contextmanager
def _listening(found: list[tuple[str, Any]]) -> Iterator[None]:
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    event.listen(get_engine(), "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(get_engine(), "before_cursor_execute", note)


def _literal(statement: str, values: Any, varying: dict[str, str], connection: psycopg.Connection) -> str:
    """One statement with its values in it, and variables in place of what is another each time."""
    waiting = iter(values if isinstance(values, (tuple, list)) else ())

    def write(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        value = values[match[1]] if match[1] else next(waiting)
        text = sql.Literal(value).as_string(connection)
        for known, variable in varying.items():
            text = text.replace(known, f"'||{variable}||'")
        # Pieces are one value, and a cast of it is of all of it.
        return re.sub(r"^('.*\|\|.*')(::\w+)?$", r"(\1)\2", text.strip())

    line = re.sub(r"%\((\w+)\)s|%s|%%", write, statement)
    return re.sub(r"\s+", " ", line)


def _script(statements: list[str]) -> str:
    # What the statements after an INSERT need is the number of the new row.
    lines = [each + (" \\gset" if each.startswith("INSERT INTO") else ";") for each in statements]
    return "\n".join(["\\set job random(1, 9000000000000000000)", *lines, ""])
