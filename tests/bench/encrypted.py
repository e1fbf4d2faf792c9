"""What it costs to read encrypted values, against the same tokens opened by bare Fernet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cryptography.fernet import Fernet
from sqlalchemy import Text, insert, select, type_coerce
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.encryption import get_keyring
from db.models import APIKey
from db.repositories import UserRepository
from db.service import DatabaseService
from tests.bench.report import Report

VALUES = 10_000
TARGET = 1.15
ROUNDS = 7


def reading(report: Report) -> None:
    """In turn, the fastest of several rounds each: other work on the machine only ever makes one slower."""
    report.section(f"reading {VALUES} encrypted values, against bare Fernet")
    label = "api_keys.encrypted_value"
    keyring = get_keyring()
    assert keyring.primary is not None
    bare: Fernet = keyring.primary.fernet(label)
    stored = [keyring.seal(f"secret number {n:06} of the bench", label) for n in range(VALUES)]
    tokens = [value.rpartition(":")[2].encode() for value in stored]
    read = APIKey.__table__.c.encrypted_value.type.result_processor(postgresql.dialect(), None)
    assert read is not None
    ours, theirs = _fastest(
        lambda: [read(value) for value in stored], lambda: [bare.decrypt(token).decode() for token in tokens]
    )
    detail = f"{ours * 1000:.0f} ms against {theirs * 1000:.0f} ms"
    report.at_most("opening in memory", ours / theirs, TARGET, detail)
    with get_db_session() as session:
        _store(session)
        column = APIKey.encrypted_value
        ours, theirs = _fastest(
            lambda: session.scalars(select(column)).all(),
            lambda: [
                bare.decrypt(value.rpartition(":")[2].encode()).decode()
                for value in session.scalars(select(type_coerce(column, Text()))).all()
            ],
        )
        session.rollback()
    detail = f"{ours * 1000:.0f} ms against {theirs * 1000:.0f} ms"
    report.at_most("reading them from the database", ours / theirs, TARGET, detail)


def _store(session: Session) -> None:
    name = "bench-secrets"
    user = UserRepository(session).get_by_username(name) or DatabaseService(session).create_user_with_audit(
        name, f"{name}@example.org"
    )
    session.execute(
        insert(APIKey.__table__),
        [
            {
                "user_id": user.id,
                "service_name": "bench",
                "key_name": str(n),
                "encrypted_value": f"secret {n:06} of the bench",
            }
            for n in range(VALUES)
        ],
    )


def _fastest(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for index, work in enumerate((ours, theirs)):
            start = time.perf_counter()
            assert len(work()) == VALUES
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[1]
