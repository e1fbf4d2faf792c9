"""`ops audit`: verify, seal, search, who opened a secret."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from db.seals import new_pair
from tasks.audit import seal
from tests.conftest import settings_from
from tests.worker.cli.conftest import Ops
from worker.servers import OWNER_ROLE

PRIVATE, PUBLIC = new_pair()


@pytest.fixture
def sealing(database, tmp_path: Path):
    """Settings with a key, and a file outside."""
    file = tmp_path / "seals.jsonl"
    with settings_from({"OPS_AUDIT_SEAL_KEY": PRIVATE, "OPS_AUDIT_SEAL_FILE": str(file)}):
        yield file


def change_an_entry(database) -> None:
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("ALTER TABLE audit_logs DISABLE TRIGGER USER")
        owner.execute("UPDATE audit_logs SET actor = 'somebody' WHERE id = 1")


class TestVerify:
    def test_a_sealed_trail_is_whole_and_says_how_much_waits(self, sealing, ready: Ops) -> None:
        assert ready("audit", "seal").code == 0
        assert ready("audit", "seal").stdout.startswith("nothing to seal")
        ready("app", "add", "more", "--", "true")
        done = ready("audit", "verify")
        assert done.code == 0
        assert done.stdout.splitlines()[-1] == "the trail is whole"
        assert "not sealed yet: 1 entries, the oldest" in done.stdout

    def test_what_was_changed_is_named_and_the_exit_code_says_so(self, sealing, ready: Ops, database) -> None:
        ready("audit", "seal")
        change_an_entry(database)
        done = ready("audit", "verify")
        assert (done.code, done.stdout.splitlines()[0]) == (1, "entry 1 was changed")
        found = ready("audit", "verify", "--json")
        assert found.code == 1
        assert found.json["findings"] == [
            {"kind": "entry_changed", "what": "entry 1 was changed", "entry": 1, "seal": 1}
        ]
        assert found.json["whole"] is False

    def test_without_a_key_it_cannot_be_told(self, ready: Ops) -> None:
        done = ready("audit", "verify")
        assert (done.code, done.error) == (3, "the trail cannot be verified: there is no key")
        refused = ready("audit", "seal")
        assert (refused.code, refused.error) == (5, "there is no key to seal with")
        assert "audit: not sealed here" in ready("status").stdout

    def test_the_public_half_verifies(self, sealing, ready: Ops) -> None:
        ready("audit", "seal")
        with settings_from({"OPS_AUDIT_SEAL_KEY": "", "OPS_AUDIT_VERIFY_KEY": PUBLIC}):
            assert ready("audit", "verify").code == 0

    def test_the_file_outside_tells_of_a_tail_that_was_cut_off(self, sealing, ready: Ops, database, tmp_path) -> None:
        ready("audit", "seal")
        ready("app", "add", "more", "--", "true")
        ready("audit", "seal")
        kept = tmp_path / "kept"
        kept.write_text(sealing.read_text())
        with database.connect(OWNER_ROLE) as owner:
            for table in ("audit_logs", "audit_seals"):
                owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            owner.execute("DELETE FROM audit_logs WHERE id > (SELECT to_id FROM audit_seals WHERE number = 1)")
            owner.execute("DELETE FROM audit_seals WHERE number = 2")
        assert ready("audit", "verify").code == 1
        done = ready("audit", "verify", "--seals", str(kept))
        assert done.stdout.startswith("the end of the trail is cut off")
        missing = ready("audit", "verify", "--seals", "/nowhere")
        assert missing.code == 3

    def test_a_fresh_pair_of_keys_is_printed_and_works(self, ready: Ops) -> None:
        made = ready("audit", "new-key", "--json").json
        with settings_from({"OPS_AUDIT_SEAL_KEY": made["seal_key"]}):
            assert ready("audit", "seal").code == 0
        with settings_from({"OPS_AUDIT_VERIFY_KEY": made["verify_key"]}):
            assert ready("audit", "verify").code == 0

    def test_a_mangled_key_is_one_line(self, ready: Ops) -> None:
        with settings_from({"OPS_AUDIT_SEAL_KEY": "mangled"}):
            done = ready("audit", "verify")
        assert (done.code, "OPS_AUDIT_SEAL_KEY is malformed" in done.error) == (2, True)
        assert "mangled" not in done.stderr


class TestTick:
    def test_the_tick_seals_what_was_written_and_tells_the_file_outside(self, sealing, ready: Ops, sql) -> None:
        assert seal() == {}
        (number, digest) = sql("SELECT number, encode(digest, 'hex') FROM audit_seals")[0]
        line = json.loads(sealing.read_text())
        assert (line["number"], line["digest"]) == (number, digest)
        assert seal() is None  # within its interval

    def test_a_run_leaves_no_entry_that_would_want_a_seal_of_its_own(self, sealing, ready: Ops, sql) -> None:
        for _ in range(3):
            sql("UPDATE ticks SET last_run_at = NULL WHERE name = 'seal'")
            seal()
        assert sql("SELECT action FROM audit_logs WHERE resource_type = 'tick' AND resource_id = 'seal'") == [
            ("tick.idle",)
        ]

    def test_without_a_key_nothing_is_sealed(self, ready: Ops, sql) -> None:
        assert seal() is None
        assert sql("SELECT count(*) FROM audit_seals") == [(0,)]

    def test_a_file_that_cannot_be_written_stops_nothing(self, sealing, ready: Ops, sql) -> None:
        with settings_from({"OPS_AUDIT_SEAL_FILE": "/nowhere/seals"}):
            assert seal() == {}
        assert sql("SELECT count(*) FROM audit_seals") == [(1,)]

    def test_status_says_how_far_the_trail_is_sealed(self, sealing, ready: Ops) -> None:
        seal()
        assert "audit: sealed up to seal 1; 0 entries wait" in ready("status").stdout
        assert ready("status", "--json").json["audit"]["newest_seal"] == 1


class TestSearch:
    def test_a_field_that_was_set_to_a_number_or_a_constant_is_found(self, ready: Ops, sql) -> None:
        sql("INSERT INTO users (username, email, is_active) VALUES ('bob', 'b@example.org', false)")
        found = ready("--json", "audit", "search", "--changed", "is_active", "--to", "false").json["items"]
        assert [entry["changes"]["username"][1] for entry in found] == ["bob"]
        assert ready("--json", "audit", "search", "--changed", "username", "--to", "bob").json["items"] == found

    def test_a_value_without_a_field_is_refused(self, ready: Ops) -> None:
        done = ready("audit", "search", "--to", "x")
        assert (done.code, "--changed" in done.error) == (2, True)

    def test_csv_holds_every_column_over_all_pages_and_no_formula(self, ready: Ops, sql) -> None:
        for text in ("=cmd|'/c calc'!A1", "+1", "-1", "@x", "\t=1", " =1", 'a,b"c\nd\x1b[2Je'):
            sql("SELECT ops_audit('x', 'thing', %s, NULL, jsonb_build_object('n', -1))", text)
        done = ready("audit", "search", "--resource", "thing", "--csv", "--limit", "1000")
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert [row["resource_id"] for row in reversed(rows)] == [
            "'=cmd|'/c calc'!A1", "'+1", "'-1", "'@x", "'\t=1", "' =1", 'a,b"c de',
        ]  # fmt: skip
        assert json.loads(rows[0]["details"]) == {"n": -1}
        assert rows[0]["db_user"] == "ops_app"
        assert "\x1b" not in done.stdout
        short = ready("audit", "search", "--resource", "thing", "--csv", "--limit", "3")
        assert (len(short.stdout.splitlines()), f"more: --before {rows[2]['id']}" in short.stderr) == (4, True)
        assert ready("audit", "search", "--csv", "--json").code == 2

    def test_csv_goes_over_all_pages(self, ready: Ops, sql, monkeypatch) -> None:
        monkeypatch.setattr("db.repositories.base.MAX_LIMIT", 2)
        sql("SELECT ops_audit('x', 'thing', n::text) FROM generate_series(1, 5) n")
        lines = ready("audit", "search", "--resource", "thing", "--csv").stdout.splitlines()
        assert len(lines) == 6


def test_who_opened_a_secret_is_told_with_the_deployment_it_was_for(ready: Ops, database) -> None:
    from db.connection import get_db_session
    from db.models import User
    from db.services import secrets

    assert ready("secret", "set", "github/token", stdin="s3cr3t").code == 0
    assert ready("secret", "set", "github/other", stdin="s3cr3t").code == 0
    assert ready("deploy", "web", "v1", "--to", "local", "--detach").code == 0
    with get_db_session(actor="worker one", actor_type="worker") as session:
        owner = session.query(User).one().id
        for name, deployment in (("github/token", 1), ("github/other", 1), ("github/token", 99)):
            secrets.open_all(session, owner_id=owner, wanted={"A": name}, deployment_id=deployment)
    found = ready("--json", "audit", "opened", "github/token").json["items"]
    assert [(each["actor"], each["owner"], each["deployment_id"], each["deployment"]) for each in found] == [
        ("worker one", "ann", 99, None),
        ("worker one", "ann", 1, "web v1 on local"),
    ]
    assert "web v1 on local" in ready("audit", "opened", "github/token").stdout
    assert ready("audit", "opened", "github/nothing").stdout == "no openings\n"
    assert ready("audit", "opened", "github").code == 2
    assert len(ready("audit", "opened", "github/token", "--csv").stdout.splitlines()) == 3
