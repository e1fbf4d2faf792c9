"""What auditing adds to writing, with one tool: `peers.py TOOL URL` prints {case: [seconds without, seconds with]}.

Run by a Python of its own, in which the other tools are installed: nothing of ours is imported. Each tool is set up as
its documentation says, and told who acts; the same rows are written by the same ORM to two tables of the same shape.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from statistics import median
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, configure_mappers

ROUNDS = {"one": 200, "hundred": 20, "update": 3}
BULK = 5000
#: The indexes by which ours is searched; the other tools have none.
SEARCHED = ("action", "actor", "actor_id", "changes", "opened", "resource", "task_id")


def columns() -> dict[str, sa.Column]:
    """The shape of `deployments`, with its indexes."""
    return {
        "id": sa.Column(sa.BigInteger, sa.Identity(), primary_key=True),
        "user_id": sa.Column(sa.BigInteger, index=True),
        "application_id": sa.Column(sa.BigInteger, index=True),
        "infrastructure_id": sa.Column(sa.BigInteger, index=True),
        "version": sa.Column(sa.Text),
        "status": sa.Column(sa.Text, index=True),
        "job_id": sa.Column(sa.Uuid, unique=True),
        "rollback_deployment_id": sa.Column(sa.BigInteger, index=True),
        "error_message": sa.Column(sa.Text),
        "started_at": sa.Column(sa.DateTime(timezone=True)),
        "finished_at": sa.Column(sa.DateTime(timezone=True)),
        "created_at": sa.Column(sa.DateTime(timezone=True), default=lambda: datetime.now(UTC)),
        "updated_at": sa.Column(sa.DateTime(timezone=True), default=lambda: datetime.now(UTC)),
    }


class Base(DeclarativeBase):
    pass


def tables(engine: sa.Engine, tool: str) -> tuple[type, type]:
    """Two mapped classes: one without audit, one under it."""
    marks: dict[str, object] = {"__versioned__": {"exclude": ["updated_at"]}}
    if tool == "SQLAlchemy-Continuum":
        from sqlalchemy_continuum import make_versioned

        make_versioned(user_cls=None)
    elif tool == "postgresql-audit":
        from postgresql_audit import versioning_manager

        versioning_manager.init(Base)
        versioning_manager.values = {"actor_id": "7"}
    else:
        marks = {}
    names = ("without", "watched")
    made = tuple(
        type(name.title(), (Base,), {"__tablename__": name, **columns(), **(marks if name == "watched" else {})})
        for name in names
    )
    configure_mappers()
    if tool == "postgresql-audit":  # its functions come with its tables
        theirs = [versioning_manager.transaction_cls.__table__, versioning_manager.activity_cls.__table__]
        Base.metadata.create_all(engine, tables=theirs)
    Base.metadata.create_all(engine)
    if tool in ("ours", "unsearchable"):
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT ops_audit_watch('watched', ignore => '{updated_at}')"))
            for index in SEARCHED if tool == "unsearchable" else ():
                connection.execute(sa.text(f"DROP INDEX ix_audit_logs_{index}"))
        sa.event.listen(Session, "after_begin", say_who)
    return made  # type: ignore[return-value]


def say_who(session: Session, _transaction: object, connection: sa.Connection) -> None:
    if session.info.get("audited"):
        context = json.dumps({"actor": "anna", "actor_id": 7, "actor_type": "user"})
        connection.execute(sa.text("SELECT set_config('ops.context', :context, true)"), {"context": context})


def row(kind: type, number: int) -> object:
    return kind(
        user_id=7, application_id=number % 50, infrastructure_id=number % 9, version=f"v{number}", status="pending",
        job_id=uuid4(),
    )  # fmt: skip


def add(session: Session, kind: type, count: int) -> None:
    session.add_all([row(kind, number) for number in range(count)])


def change(session: Session, kind: type, tool: str, to: str) -> None:
    """One statement; Continuum sees no statements, so the same rows one by one."""
    if tool == "SQLAlchemy-Continuum":
        for each in session.info["rows"]:
            each.status = to
    else:
        session.execute(sa.update(kind).where(kind.id <= BULK).values(status=to))  # type: ignore[attr-defined]


def measure(engine: sa.Engine, tool: str, kinds: tuple[type, type]) -> dict[str, list[float]]:
    for kind in kinds:
        with Session(engine) as session:
            session.execute(sa.insert(kind), [{"status": "pending", "version": f"v{n}"} for n in range(BULK)])
            session.commit()
    seconds: dict[str, tuple[list[float], list[float]]] = {case: ([], []) for case in ROUNDS}
    for case, rounds in ROUNDS.items():
        for number in range(rounds * 2):  # in turn
            audited = number % 2
            kind = kinds[audited]
            with Session(engine, info={"audited": audited}) as session:
                if case == "update" and tool == "SQLAlchemy-Continuum":
                    session.info["rows"] = session.scalars(sa.select(kind).where(kind.id <= BULK)).all()  # type: ignore[attr-defined]
                start = time.perf_counter()
                if case == "update":
                    change(session, kind, tool, f"s{number}")
                else:
                    add(session, kind, 1 if case == "one" else 100)
                session.commit()
                seconds[case][audited].append(time.perf_counter() - start)
    return {case: [median(without), median(with_)] for case, (without, with_) in seconds.items()}


if __name__ == "__main__":
    named, url = sys.argv[1:]
    made = sa.create_engine(url)
    print(json.dumps(measure(made, named, tables(made, named))))
