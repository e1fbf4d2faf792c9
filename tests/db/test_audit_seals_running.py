"""Every committed entry is sealed exactly once, whatever runs beside the sealer, and nothing false is found."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.connection import get_db_session
from db.repositories.audit_seals import AuditSealRepository
from db.services import sealing
from tests.conftest import SCHEMA, Database
from tests.db.sealed import Trail


@pytest.fixture
def trail(database: Database, tmp_path) -> Trail:
    return Trail(database, tmp_path / "seals.jsonl")


def sealed_ids(trail: Trail) -> list[int]:
    with get_db_session() as session:
        return [id_ for seal in AuditSealRepository(session).list_after(0, 10**6) for id_, _ in seal.hashes()]


class Writer(threading.Thread):
    """Commits, rolls back, keeps transactions open, writes inside savepoints."""

    def __init__(self, database: Database, seed: int, until: float) -> None:
        super().__init__()
        self.random, self.database, self.until = random.Random(seed), database, until
        self.committed = 0
        self.error: psycopg.Error | None = None

    def run(self) -> None:
        try:
            with self.database.connect() as app:
                while time.monotonic() < self.until:
                    self._transaction(app)
        except psycopg.Error as error:
            self.error = error

    def _transaction(self, app: psycopg.Connection) -> None:
        count = self.random.choice((1, 1, 1, 2, 20))
        with app.transaction():
            for number in range(count):
                with app.transaction():
                    app.execute("SELECT ops_audit('thing.done', 'x', %s)", [str(number)])
                    if self.random.random() < 0.1:
                        raise psycopg.Rollback
                if self.random.random() < 0.02:
                    # A long transaction is what the watermark is for; its length is the test.
                    app.execute("SELECT pg_sleep(%s)", [self.random.uniform(0.05, 0.5)])
            if self.random.random() < 0.2:
                raise psycopg.Rollback


def run_beside_writers(trail: Trail, seconds: float) -> int:
    until = time.monotonic() + seconds
    writers = [Writer(trail.database, seed, until) for seed in range(4)]
    for writer in writers:
        writer.start()
    rounds = 0
    while any(writer.is_alive() for writer in writers):
        trail.seal(limit=50)
        assert trail.found(with_outside=True) == []
        rounds += 1
    for writer in writers:
        writer.join()
        assert writer.error is None
    trail.seal(limit=50)
    report = trail.verify(with_outside=True)
    assert (report.findings, report.unsealed) == ([], 0)
    written = [id_ for (id_,) in trail.ask("SELECT id FROM audit_logs")]
    assert Counter(sealed_ids(trail)) == Counter(written)
    assert report.entries == len(written)
    return rounds


def test_nothing_is_found_while_writers_rollbacks_and_long_transactions_run_beside_the_sealer(trail: Trail):
    assert run_beside_writers(trail, 4) > 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_found_in_two_minutes_of_it(trail: Trail):
    assert run_beside_writers(trail, 120) > 20


def test_of_two_sealers_at_once_one_seals(trail: Trail):
    trail.write(3)
    with get_db_session() as first, get_db_session() as second:
        assert sealing.seal_next(first, trail.keys) is not None
        assert sealing.seal_next(second, trail.keys) is None
    assert len(sealed_ids(trail)) == 3


def test_an_entry_that_commits_after_later_ones_is_sealed_in_its_place(trail: Trail, database: Database):
    with database.connect() as slow, slow.transaction():
        slow.execute("SELECT ops_audit('thing.done', 'slow', '1')")
        trail.write(3)
        assert trail.seal() == []  # what is after an open transaction waits for it
        report = trail.verify()
        assert (report.unsealed, report.findings) == (3, [])
    (seal,) = trail.seal()
    assert [id_ for id_, _ in seal.hashes()] == [1, 2, 3, 4]


def test_interleavings_of_transactions_leave_each_committed_entry_under_one_seal(database: Database, tmp_path):
    """Three connections begin, write, commit and roll back in any order, with seals at any moment."""
    shared = Trail(database, tmp_path).keys
    acts = st.lists(st.tuples(st.sampled_from("wwwcrs"), st.integers(0, 2)), max_size=40)

    @settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
    @given(acts)
    def run(script: list[tuple[str, int]]) -> None:
        trail = Trail(database, tmp_path / "seals.jsonl", keys=shared)
        open_ = [psycopg.connect(database.url, options=f"-c search_path={SCHEMA}") for _ in range(3)]
        try:
            for act, who in script:
                if act == "w":
                    open_[who].execute("SELECT ops_audit('thing.done', 'x', '1')")
                elif act == "c":
                    open_[who].commit()
                elif act == "r":
                    open_[who].rollback()
                else:
                    trail.seal(limit=3)
                    assert trail.found() == []
        finally:
            for each in open_:
                each.rollback()
                each.close()
        trail.seal(limit=3)
        assert trail.found() == []
        written = [id_ for (id_,) in trail.ask("SELECT id FROM audit_logs")]
        assert Counter(sealed_ids(trail)) == Counter(written)

    run()
