"""Whoever changes the sealed trail, the owner of its tables included, is found, and what was changed is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from db.errors import Refused, SettingsError, Unavailable
from db.seals import new_pair
from tests.conftest import Database
from tests.db.sealed import Trail, keys

ALL_BUT = "at, action, resource_type, resource_id, actor_type, actor, db_user, changes, details"


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> Trail:
    """Twelve entries under four seals of three, and two that are not sealed yet."""
    made = Trail(database, tmp_path / "seals.jsonl")
    made.write(12)
    assert [seal.count for seal in made.seal(limit=3)] == [3, 3, 3, 3]
    made.write(2)
    return made


def copy_of(id_: int, **fields: str) -> str:
    """Insert an entry like another, but for these columns."""
    columns = "xid, " + ALL_BUT
    values = ", ".join(fields.get(name, name) for name in columns.split(", "))
    if "id" in fields:
        columns, values = f"id, {columns}", f"{fields['id']}, {values}"
    return (
        f"INSERT INTO audit_logs ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM audit_logs WHERE id = {id_}"
    )


def test_a_trail_that_nobody_has_touched_is_whole(trail: Trail):
    report = trail.verify(with_outside=True)
    assert report.findings == []
    assert (report.entries, report.seals, report.unsealed, report.notes) == (12, 4, 2, [])
    trail.seal()
    report = trail.verify(with_outside=True)
    assert (report.entries, report.seals, report.unsealed, report.findings) == (14, 5, 0, [])


@pytest.mark.parametrize(
    "change",
    [
        "actor = 'somebody else'",
        "actor = actor || ' '",
        "at = at + interval '1 microsecond'",
        "details = '{}'",
        "resource_id = NULL",
        "ip_address = '10.0.0.1'",
        "db_user = 'ops_app2'",
    ],
)
def test_an_entry_that_was_changed_is_named(trail: Trail, change: str):
    with trail.tampering() as do:
        do(f"UPDATE audit_logs SET {change} WHERE id = 5")
    assert trail.found(with_outside=True) == [("entry_changed", 5)]


@pytest.mark.parametrize("id_", [1, 3, 4, 8, 12])
def test_an_entry_that_was_deleted_is_named(trail: Trail, id_: int):
    with trail.tampering() as do:
        do("DELETE FROM audit_logs WHERE id = %s", id_)
    assert trail.found() == [("entry_removed", id_)]


@pytest.mark.parametrize("xid", ["xid", "'1'", "(xid::text::bigint - 1)::text::xid8"])
def test_an_entry_that_was_inserted_among_the_sealed_ones_is_named(trail: Trail, xid: str):
    with trail.tampering() as do:
        do(copy_of(5, xid=xid if xid == "xid" else f"{xid}::xid8"))
    (new,) = trail.ask("SELECT max(id) FROM audit_logs")[0]
    assert trail.found() == [("entry_inserted", new)]
    trail.seal()
    assert trail.found() == [("entry_inserted", new)]


def test_a_second_entry_with_the_id_of_another_is_named(trail: Trail):
    with trail.tampering() as do:
        do(copy_of(5, id="5", at="at + interval '1 second'"))
    assert trail.found() == [("entry_inserted", 5)]


def test_an_entry_that_is_dated_before_its_transaction_is_named(trail: Trail):
    with trail.tampering() as do:
        do(copy_of(5, xid="pg_current_xact_id()", at="at - interval '10 minutes'"))
    (new,) = trail.ask("SELECT max(id) FROM audit_logs")[0]
    trail.seal()
    assert trail.found() == [("entry_backdated", new)]


def test_an_entry_of_a_transaction_that_has_not_begun_is_named_and_holds_up_nothing(trail: Trail):
    with trail.tampering() as do:
        do(copy_of(5, xid="'18446744073709551615'::xid8"))
    (new,) = trail.ask("SELECT max(id) FROM audit_logs")[0]
    trail.write()
    trail.seal()
    report = trail.verify()
    assert [(each.kind, each.entry) for each in report.findings] == [("entry_impossible", new)]
    assert "has not begun" in report.findings[0].what
    assert report.unsealed == 1


@pytest.mark.parametrize(("one", "other"), [(4, 5), (2, 11)])
def test_entries_whose_contents_or_ids_were_swapped_are_named(trail: Trail, one: int, other: int):
    with trail.tampering() as do:
        do(
            f"UPDATE audit_logs a SET (resource_id, at) = (SELECT resource_id, at FROM audit_logs b"
            f" WHERE b.id = {one + other} - a.id) WHERE id IN ({one}, {other})"
        )
    assert trail.found() == [("entry_changed", one), ("entry_changed", other)]


@pytest.mark.parametrize(("one", "other"), [(4, 5), (2, 11)])
def test_entries_that_changed_places_are_named(trail: Trail, one: int, other: int):
    with trail.tampering() as do:
        do(f"UPDATE audit_logs SET id = {one + other} - id WHERE id IN ({one}, {other})")
    kind = "entry_changed" if other - one == 1 else "entry_moved"
    assert sorted(trail.found()) == [(kind, one), (kind, other)]


def test_an_entry_that_was_moved_behind_the_seals_is_named_also_after_the_next_seal(trail: Trail):
    with trail.tampering() as do:
        do("UPDATE audit_logs SET xid = pg_current_xact_id() WHERE id = 5")
    assert trail.found() == [("entry_moved", 5)]
    trail.seal()
    assert trail.found() == [("entry_moved", 5)]


def test_a_tail_that_was_cut_off_with_its_seals_is_named_by_the_seals_outside(trail: Trail):
    with trail.tampering() as do:
        do("DELETE FROM audit_seals WHERE number > 2")
        do("DELETE FROM audit_logs WHERE id > 6")
    assert trail.found() == []  # what is left is whole: nothing inside the database tells of its end
    assert trail.found(with_outside=True) == [("tail_cut_off", 3)]
    trail.write(3)
    trail.seal()
    assert trail.found(with_outside=True) == [("seal_replaced", 3), ("tail_cut_off", 4)]


def test_a_seal_that_was_deleted_is_named_and_what_it_held_is_counted(trail: Trail):
    with trail.tampering() as do:
        do("DELETE FROM audit_seals WHERE number = 2")
    report = trail.verify(with_outside=True)
    assert [(each.kind, each.seal) for each in report.findings] == [("seal_missing", 2)]
    assert report.unverifiable == 3


def test_seals_that_were_deleted_are_named_together(trail: Trail):
    with trail.tampering() as do:
        do("DELETE FROM audit_seals WHERE number IN (1, 2, 3)")
    (finding,) = trail.verify().findings
    assert (finding.kind, finding.what) == ("seal_missing", "seals 1 to 3 are missing")


@pytest.mark.parametrize(
    "change",
    [
        "count = 2, entries = substr(entries, 1, 48)",
        "entries = substr(entries, 49, 24) || substr(entries, 25, 24) || substr(entries, 1, 24)",
        "to_id = to_id + 1",
        "sealed_at = sealed_at - interval '1 day'",
        "previous = sha256('x')",
        "root = sha256('x')",
        "digest = sha256('x')",
        "signature = sha512('x')",
        "epoch = 2",
        "next_xid = '1'::xid8",
    ],
)
def test_a_seal_that_was_rewritten_is_named(trail: Trail, change: str):
    with trail.tampering() as do:
        do(f"UPDATE audit_seals SET {change} WHERE number = 2")
    kinds = {("seal_forged", 2)} | ({("seal_replaced", 2)} if change.startswith("digest") else set())
    assert set(trail.found(with_outside=True)) == kinds
    assert trail.verify().unverifiable == 3


def test_an_entry_changed_together_with_its_seal_leaves_a_seal_that_is_none(trail: Trail):
    with trail.tampering() as do:
        do("UPDATE audit_logs SET actor = 'x' WHERE id = 5")
        do("UPDATE audit_seals SET entries = overlay(entries placing sha256('x') from 9), digest = sha256('y')"
           " WHERE number = 2")  # fmt: skip
    assert trail.found() == [("seal_forged", 2)]


def test_what_a_runtime_role_forges_is_named_and_neither_stops_nor_derails_the_sealer(trail: Trail):
    trail.forge()
    trail.forge(to_xid="'9000000000000000000'::xid8", to_id="9000000000000000000", epoch="7")
    (seal,) = trail.seal()
    assert (seal.number, seal.epoch, seal.count) == (7, 1, 2)
    trail.forge(key_id="'somebodys'")
    trail.write()
    (seal,) = trail.seal()
    assert trail.found(with_outside=True) == [("seal_forged", 5), ("seal_forged", 6), ("seal_unknown_key", 8)]
    assert trail.verify().entries == 15


@pytest.mark.parametrize("number", ["number", "number + 2", "9223372036854775807", "-1"])
def test_a_runtime_role_can_neither_leave_numbers_out_nor_use_them_up(trail: Trail, number: str):
    with pytest.raises(psycopg.errors.UniqueViolation, match="does not follow"):
        trail.forge(number=number)


def test_a_forgery_that_was_cleared_away_is_no_finding(trail: Trail):
    trail.forge()
    trail.seal()
    assert trail.found() == [("seal_forged", 5)]
    with trail.tampering() as do:
        do("DELETE FROM audit_seals WHERE number = 5")
    assert trail.found() == []


def test_seals_are_only_added(trail: Trail, sql: Callable[..., list[tuple]]):
    for statement in ("UPDATE audit_seals SET count = 1", "DELETE FROM audit_seals", "TRUNCATE audit_seals"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            sql(statement)
        with (
            trail.database.connect("ops_owner") as owner,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"),
        ):
            owner.execute(statement)


def test_a_part_of_the_trail_is_verified_by_when_it_was_sealed(trail: Trail):
    with trail.tampering() as do:
        do("UPDATE audit_logs SET actor = 'x' WHERE id = 5")
    trail.write(3)
    before = datetime.now(UTC)
    trail.seal(limit=3)
    report = trail.verify(since=before, with_outside=True)
    assert (report.findings, report.seals, report.entries) == ([], 2, 5)
    with trail.tampering() as do:
        do("DELETE FROM audit_logs WHERE id = 14")
    assert trail.found(since=before) == [("entry_removed", 14)]
    assert trail.verify(since=datetime.now(UTC) + timedelta(hours=1)).seals == 0


class TestKeys:
    def test_the_public_half_is_enough_to_verify_but_not_to_seal(self, database, tmp_path):
        private, public = new_pair()
        trail = Trail(database, tmp_path / "seals", keys(private))
        trail.write(3)
        trail.seal()
        assert trail.verify(by=keys("", public)).entries == 3
        trail.keys = keys("", public)
        with pytest.raises(Refused, match="no key to seal with"):
            trail.seal()

    def test_without_a_key_nothing_can_be_said(self, trail):
        with pytest.raises(Unavailable, match="there is no key"):
            trail.verify(by=keys())

    def test_a_former_key_is_known_by_its_public_half(self, trail, tmp_path):
        (old_private, old_public), (private, _) = new_pair(), new_pair()
        other = Trail(trail.database, tmp_path / "s", keys(private))
        with pytest.raises(Refused, match="which this process does not know"):
            other.seal()
        with trail.tampering() as do:
            do("DELETE FROM audit_seals")
        other.keys = keys(old_private)
        assert [seal.number for seal in other.seal()] == [1]
        other.write()
        other.keys = keys(private, old_public)
        assert [seal.number for seal in other.seal()] == [2]
        assert other.found() == []
        assert other.verify(by=keys(private)).findings[0].kind == "seal_unknown_key"

    @pytest.mark.parametrize("mangled", ["x", "A" * 43, "A" * 45, "!" * 44])
    def test_a_mangled_key_is_refused_by_name(self, mangled):
        with pytest.raises(SettingsError, match="OPS_AUDIT_SEAL_KEY is malformed"):
            keys(mangled)


class TestOutside:
    def test_a_line_cut_by_a_crash_is_no_finding_but_one_in_the_middle_is(self, trail):
        whole = trail.outside.read_text()
        trail.outside.write_text(whole[:-30])
        assert trail.found(with_outside=True) == []
        trail.outside.write_text("{}\n" + whole)
        assert trail.found(with_outside=True) == [("outside_unreadable", None)]

    def test_a_line_that_nobody_signed_names_the_file_not_the_trail(self, trail):
        line = json.loads(trail.outside.read_text().splitlines()[-1])
        with trail.outside.open("a") as file:
            file.write(json.dumps(line | {"number": 99, "signature": "00" * 64}) + "\n")
        assert trail.found(with_outside=True) == [("outside_forged", None)]

    def test_lines_of_several_sealers_may_come_in_any_order(self, trail):
        lines = trail.outside.read_text().splitlines(keepends=True)
        trail.outside.write_text("".join(lines[i] for i in (3, 0, 2, 1, 1)))
        assert trail.found(with_outside=True) == []

    def test_a_seal_that_was_made_anew_is_named_whatever_the_order_of_the_lines(self, trail):
        lines = trail.outside.read_text().splitlines(keepends=True)
        trail.outside.write_text("".join(lines[i] for i in (3, 0, 2, 1)))
        with trail.tampering() as do:
            do("DELETE FROM audit_seals WHERE number > 1")
        trail.outside = trail.outside.with_name("not here")
        trail.seal(limit=3)
        trail.outside = trail.outside.with_name("seals.jsonl")
        found = trail.found(with_outside=True)
        assert sorted(found) == [("seal_replaced", number) for number in (2, 3, 4)]

    def test_a_file_that_is_not_there_is_said(self, trail):
        trail.outside = Path("/nowhere/seals")
        with pytest.raises(Unavailable, match="/nowhere/seals cannot be read"):
            trail.verify(with_outside=True)
