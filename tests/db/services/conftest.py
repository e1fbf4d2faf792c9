"""People, and things they deploy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import encryption
from db.ledger import Ledger
from db.models import Application, Base, Deployment, Infrastructure, User
from db.services import applications, deployments, infrastructure, users
from db.settings import get_settings
from tests.conftest import SCHEMA, Database

Person = Callable[..., User]


@pytest.fixture
def person(session: Session) -> Person:
    def make(name: str, role: str = "operator") -> User:
        return users.create(session, username=name, email=f"{name}@example.org", role=role)

    return make


@pytest.fixture
def anna(person: Person) -> User:
    """An operator."""
    return person("anna")


@pytest.fixture
def shop(session: Session) -> Application:
    return applications.register(session, name="shop", command=["deploy", "it"])


@pytest.fixture
def here(session: Session, anna: User) -> Infrastructure:
    """A place of anna's."""
    return infrastructure.register(session, owner_id=anna.id, name="here")


@pytest.fixture
def asked(session: Session, anna: User, shop: Application, here: Infrastructure) -> Deployment:
    """A deployment that waits, committed."""
    made = deployments.create(session, user_id=anna.id, application_id=shop.id, infrastructure_id=here.id, version="v1")
    session.commit()
    return made


@pytest.fixture
def run(database: Database, session: Session) -> Callable[..., None]:
    """Run a deployment's job as a worker would, up to an outcome (None: it runs on)."""

    def to(deployment: Deployment, outcome: str | None = "ok", error: str | None = None) -> None:
        session.commit()
        ledger = Ledger(psycopg.conninfo.make_conninfo(database.url), SCHEMA)
        token = uuid4()
        claim = ledger.claim(
            deployment.job_id, deployments.RUN_TASK, token, worker="w1", host="h", holders=["1:0"]
        )  # fmt: skip
        assert claim.verdict == "run"
        assert ledger.begin(deployment.job_id, claim.attempt, token, ["1:0"]) == "go"
        if outcome is not None:
            ledger.finish(deployment.job_id, claim.attempt, token, outcome, error=error)
        ledger.close()
        session.refresh(deployment)

    return to


@contextmanager
def encryption_key(key: str) -> Iterator[None]:
    """Go on, in the same sessions, as a process with this key ("": with none)."""
    before = os.environ["ENCRYPTION_KEY"]
    _use(key)
    try:
        yield
    finally:
        _use(before)


def _use(key: str) -> None:
    os.environ["ENCRYPTION_KEY"] = key
    get_settings.cache_clear()
    encryption.reset_keyring()


def rows(session: Session) -> dict[str, int]:
    """How many rows each table has."""
    counts = [
        select(func.count()).select_from(table).scalar_subquery().label(table.name)
        for table in Base.metadata.sorted_tables
    ]
    return dict(session.execute(select(*counts)).one()._mapping)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message
