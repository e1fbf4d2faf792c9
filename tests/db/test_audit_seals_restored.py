"""A trail that was restored where transaction ids begin anew goes on being sealed, and is whole."""

from __future__ import annotations

import pytest

from db.repositories import audit_seals
from db.repositories.audit_seals import Server
from tests.db.sealed import Trail

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
        settled = audit_seals.AuditSealRepository.entries

        def entries(self, *, settled: bool = False, **given):
            return original(self, settled=False, **given)

        original = settled
        monkeypatch.setattr(audit_seals.AuditSealRepository, "entries", entries)
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
