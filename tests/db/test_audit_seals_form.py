"""The canonical form of an entry, what a seal binds, and how retention and sealing go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from db import connection
from db.connection import get_db_session
from db.models import AuditLog
from db.repositories.audit_seals import AuditSealRepository
from db.seals import FORM, FORMS, START, Seal, bind, new_pair, read
from tests.conftest import SCHEMA, Database
from tests.db.sealed import Trail, keys
from worker.servers import OWNER_ROLE

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
words = st.one_of(st.sampled_from(["", "\\N", "N", "\t", "\n", "\\", "\\t", "\r", "a\tb"]), text)
document = st.none() | st.dictionaries(
    words, st.none() | words | st.integers() | st.lists(words, max_size=2), max_size=2
)
row = st.fixed_dictionaries(
    {
        "action": words, "resource_type": words, "resource_id": st.none() | words, "actor": words,
        "client": st.none() | words, "user_agent": st.none() | words, "request_id": st.none() | words,
        "changes": document, "details": document,
    }
)  # fmt: skip
Write = Callable[[dict], bytes]


@pytest.fixture
def write(database: Database):
    """Write an entry, as the owner, in a transaction that is undone; answers its line. Its id and times are fixed."""
    with database.connect(OWNER_ROLE) as owner:
        owner.autocommit = False

        def run(values: dict, preparation: str = "SELECT 1") -> bytes:
            owner.execute(preparation)
            held = {name: Jsonb(v) if isinstance(v, dict) else v for name, v in values.items()}
            held |= {"id": 1, "at": datetime(2026, 11, 24, tzinfo=UTC), "xid": "7", "actor_type": "user"}
            marks = ", ".join(f"%({name})s" for name in held)
            owner.execute(
                f"INSERT INTO {SCHEMA}.audit_logs ({', '.join(held)}) OVERRIDING SYSTEM VALUE VALUES ({marks})", held
            )
            columns = ", ".join(FORMS[FORM])
            owner.execute("SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'")
            with owner.cursor().copy(f"COPY (SELECT {columns} FROM {SCHEMA}.audit_logs) TO STDOUT") as copy:
                (line,) = [bytes(each) for each in copy]
            owner.rollback()
            return line

        yield run


def test_the_form_names_every_column():
    """A column more is a form more: an entry's value there would not be sealed."""
    assert sorted(FORMS[FORM]) == sorted(column.name for column in AuditLog.__table__.columns)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(row, row)
def test_different_entries_have_different_forms(write: Write, one: dict, other: dict):
    assert (write(one) == write(other)) == (one == other)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(row, st.data())
def test_a_change_of_one_column_changes_the_form(write: Write, one: dict, data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(one)))
    other = one | {name: data.draw(row)[name]}
    assert (write(one) == write(other)) == (one == other)


SESSIONS = [
    {"timezone": "Asia/Kathmandu", "datestyle": "German", "intervalstyle": "iso_8601"},
    {"client_encoding": "LATIN1", "bytea_output": "escape", "extra_float_digits": "0"},
    {"search_path": "pg_temp", "standard_conforming_strings": "on", "datestyle": "SQL, DMY"},
]


@pytest.mark.parametrize("said", SESSIONS)
def test_the_form_does_not_depend_on_the_settings_of_a_session(database: Database, said: dict[str, str], tmp_path):
    trail = Trail(database, tmp_path / "seals")
    trail.write(2, "größe \N{SNOWMAN}")
    lines = []
    for options in ({}, said):
        with database.connect(OWNER_ROLE) as owner:
            for name, value in options.items():
                owner.execute(f"ALTER DATABASE {database.name} SET {name} = {value!r}")
        connection.dispose()
        with get_db_session() as session:
            repository = AuditSealRepository(session)
            repository.begin(snapshot=True)
            lines.append([entry.line for entry in repository.entries(after=START)])
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2


def test_nothing_of_the_owners_stands_in_for_what_an_entry_is_compared_with(database: Database, tmp_path):
    """An operator of the owner's own that finds every row in its place is not asked."""
    trail = Trail(database, tmp_path / "seals")
    trail.write(3)
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("CREATE FUNCTION lie(xid8, xid8) RETURNS boolean LANGUAGE sql AS 'SELECT false'")
        owner.execute("CREATE OPERATOR > (leftarg = xid8, rightarg = xid8, function = lie)")
        owner.execute(f"ALTER DATABASE {database.name} SET search_path = {SCHEMA}, pg_catalog")
    connection.dispose()
    assert [seal.count for seal in trail.seal()] == [3]


def test_every_field_of_a_seal_is_signed():
    ring = keys(new_pair()[0])
    entries, root = bind([read(b"1\t7\t2026-11-24 00:00:00+00\tx")])
    now = datetime.now(UTC)
    plain = Seal(1, now, 1, 1, 0, 1, 0, 0, 7, 1, 9, 1, now, now, 1, entries, root, bytes(32), b"", "", b"")
    assert ring.signer is not None
    signed = ring.signer.sign(plain)
    assert ring.flaw(signed) is None
    for field in fields(Seal):
        value = getattr(signed, field.name)
        other = (
            value + 1 if isinstance(value, int)
            else value + timedelta(microseconds=1) if isinstance(value, datetime)
            else value[:-1] + (b"\0" if isinstance(value, bytes) else "0")
        )  # fmt: skip
        assert ring.flaw(replace(signed, **{field.name: other})) is not None or value == other, field.name


class TestRetention:
    """Months that were dropped when they were due are told from what somebody has removed."""

    @pytest.fixture
    def trail(self, database: Database, tmp_path) -> Trail:
        """Entries of two old months and of today, sealed as they were written."""
        made = Trail(database, tmp_path / "seals")
        with made.tampering() as do:
            for month, following in (("2020-01", "2020-02"), ("2020-02", "2020-03")):
                name = f"audit_logs_{month.replace('-', '_')}"
                do(f"CREATE TABLE {name} PARTITION OF audit_logs FOR VALUES FROM ('{month}-01') TO ('{following}-01')")
                for day in (10, 11, 12):
                    do("INSERT INTO audit_logs (at, action, resource_type, actor_type, actor)"
                       f" VALUES ('{month}-{day}', 'x', 'x', 'system', 'x')")  # fmt: skip
        made.write(3)
        return made

    def test_a_seal_holds_entries_of_one_month(self, trail: Trail):
        assert [(seal.month, seal.count) for seal in trail.seal()][:2] == [("2020-01", 3), ("2020-02", 3)]

    def test_a_month_that_was_dropped_when_it_was_due_is_no_finding(self, trail: Trail, sql):
        trail.seal()
        sql("SELECT ops_audit_drop_partitions(90)")
        report = trail.verify()
        assert (report.findings, report.dropped, report.entries) == ([], 6, 3)
        trail.seal()
        assert (trail.verify().findings, trail.verify().entries) == ([], 5)

    def test_a_partition_that_somebody_dropped_is_named(self, trail: Trail):
        trail.seal()
        with trail.tampering() as do:
            do("DROP TABLE audit_logs_2020_01")
        (finding,) = trail.verify().findings
        assert finding.what.startswith("3 entries of 2020-01 were removed with their partition")

    def test_what_was_removed_before_a_month_was_dropped_is_counted(self, trail: Trail, sql):
        trail.seal()
        with trail.tampering() as do:
            do("DELETE FROM audit_logs WHERE at = '2020-01-11'")
        sql("SELECT ops_audit_drop_partitions(90)")
        trail.seal()
        (finding,) = trail.verify().findings
        assert finding.what == "1 entries of 2020-01 were removed before the month was dropped"

    def test_an_entry_by_hand_that_says_a_young_month_was_due_is_not_believed(self, trail: Trail, sql):
        trail.seal()
        (name,) = trail.ask("SELECT tableoid::regclass::text FROM audit_logs ORDER BY id DESC LIMIT 1")[0]
        with trail.tampering() as do:
            do(f"DROP TABLE {name}")
        with trail.database.connect(OWNER_ROLE) as owner:
            following = datetime.now(UTC).replace(day=1) + timedelta(days=32)
            owner.execute(
                "INSERT INTO audit_logs (at, action, resource_type, resource_id, actor_type, actor, details)"
                " VALUES (%s, 'audit.partition_dropped', 'audit', %s, 'beat', 'tick maintenance', %s)",
                [following, name.rpartition(".")[2], Jsonb({"entries": 3, "keep_days": 730})],
            )
        (finding,) = trail.verify().findings
        assert "before they were 90 days old" in finding.what
