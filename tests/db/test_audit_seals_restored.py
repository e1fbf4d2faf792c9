"""A trail that was restored where transaction ids begin anew goes on being sealed, and is whole."""

from __future__ import annotations

import subprocess

import pytest

from db.repositories import audit_seals
from db.repositories.audit_seals import Server
from tests.conftest import Database, settings_from
from tests.db.sealed import Trail
from worker.devstack import Stack
from worker.servers import DATABASE, postgres_bin

FAR = 10**12


@pytest.fixture
def trail(database, tmp_path) -> Trail:
    return Trail(database, tmp_path / "seals.jsonl")


@pytest.fixture
def elsewhere(trail: Trail, monkeypatch):
    """Turn the trail into one of another cluster: its transactions are far ahead of this one's, or just behind."""
    real = audit_seals.AuditSealRepository.server

    def become(ahead: int) -> None:
        """Sealed by a cluster whose transaction ids were so much ahead, with entries that were not sealed."""

        def shifted(self):
            here = real(self)
            return Server(4711, here.next_xid + ahead)

        with trail.tampering() as do:
            do("UPDATE audit_logs SET xid = (xid::text::bigint + %s)::text::xid8", ahead)
        monkeypatch.setattr(audit_seals.AuditSealRepository, "server", shifted)
        read = audit_seals.AuditSealRepository.entries
        # Here their transactions are still to come.
        unsettled = lambda self, *, settled, **asked: read(self, **asked)  # noqa: E731
        monkeypatch.setattr(audit_seals.AuditSealRepository, "entries", unsettled)
        trail.seal(limit=4)
        monkeypatch.undo()

    return become


@pytest.mark.parametrize("ahead", [FAR, 3])
def test_what_was_not_sealed_there_is_sealed_here_and_then_a_new_epoch_begins(trail: Trail, elsewhere, ahead: int):
    trail.write(9)
    elsewhere(ahead)
    trail.write(2)
    with trail.tampering() as do:  # written there, after the last seal
        do("UPDATE audit_logs SET xid = (xid::text::bigint + %s)::text::xid8 WHERE id > 9", ahead)
    trail.write(5)
    report = trail.verify(with_outside=True)
    assert (report.findings, report.entries, report.unsealed) == ([], 9, 7)
    assert "restored from another server" in report.notes[0]
    made = trail.seal(limit=4)
    assert sum(seal.count for seal in made) == 7
    assert made[-1].epoch == 2
    trail.write(3)
    trail.seal(limit=2)
    report = trail.verify(with_outside=True)
    assert (report.findings, report.entries, report.unsealed) == ([], 19, 0)
    with trail.tampering() as do:
        do("UPDATE audit_logs SET actor = 'x' WHERE id IN (2, 10, 14)")
        do("DELETE FROM audit_logs WHERE id IN (3, 11, 15)")
    assert sorted(trail.found()) == sorted(
        [("entry_changed", id_) for id_ in (2, 10, 14)] + [("entry_removed", id_) for id_ in (3, 11, 15)]
    )


def test_a_trail_that_was_never_sealed_is_sealed_after_a_restore(trail: Trail):
    trail.write(4)
    with trail.tampering() as do:
        do("UPDATE audit_logs SET xid = (xid::text::bigint + %s)::text::xid8", FAR)
    trail.write(3)
    assert trail.verify().findings == []
    assert [(seal.epoch, seal.count) for seal in trail.seal()] == [(1, 4), (2, 3)]
    assert (trail.verify().findings, trail.verify().entries) == ([], 7)


def test_a_dump_that_is_restored_on_another_server_goes_on_being_sealed_there(trail: Trail, tmp_path):
    """For real: a fresh server, whose transaction ids are behind, and writers that are faster than the sealer."""
    trail.write(400)
    trail.seal(limit=150)
    trail.write(20)
    trail.forge()
    dump = tmp_path / "dump"
    source = trail.database.stack.postgres.url(trail.database.name)
    subprocess.run([postgres_bin() / "pg_dump", "-Fc", "-f", dump, source], check=True)
    stack = Stack(tmp_path / "other")
    try:
        stack.start()
        there = Database(DATABASE, stack)
        subprocess.run(
            [postgres_bin() / "pg_restore", "--exit-on-error", "-d", stack.postgres.url(DATABASE), dump], check=True
        )
        with settings_from({"DATABASE_URL": there.url, "OPS_DATABASE_OWNER_URL": there.owner_url}):
            restored = Trail(there, trail.outside, trail.keys)
            restored.write(30)
            assert restored.found(with_outside=True) == [("seal_forged", 4)]
            assert [seal.epoch for seal in restored.seal()] == [1, 2]
            restored.write(5)
            restored.seal()
            report = restored.verify(with_outside=True)
            assert [each.kind for each in report.findings] == ["seal_forged"]
            assert (report.entries, report.unsealed) == (455, 0)
    finally:
        stack.delete()
