"""The security checklist is looked at for real: what is made bad here is found, and says what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from db.connection import get_db_session
from db.seals import new_pair
from db.service import DatabaseService
from tests.conftest import SCHEMA, Database, forget_settings
from tests.db.sealed import Trail, keys
from worker.doctor import Finding, Severity, examine, packages
from worker.doctor import database as checks
from worker.doctor.configuration import is_weak

Look = Callable[..., list[Finding]]


@pytest.fixture
def look(database: Database, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Look again with these settings; the findings of the checks that are named."""

    def again(*checks: str, **settings: str) -> list[Finding]:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        forget_settings()
        return [each for each in examine(offline=True) if not checks or each.check in checks]

    return again


def worst(findings: list[Finding]) -> Severity:
    assert findings
    assert all(each.do for each in findings if each.severity > Severity.NOTE)
    return max(each.severity for each in findings)


def test_a_new_platform_is_in_order_but_for_what_is_not_there_yet(look: Look):
    found = look(SECRET_KEY="k7Wq-Zr1mXo9TtEbYc3uVnLh5sDfGaPj0R2iKxQwM8e", OPS_AUDIT_SEAL_KEY=new_pair()[0])
    assert {each.check for each in found if each.severity > Severity.NOTE} == {"processes"}
    assert [each for each in found if "could not be looked at" in each.says] == []
    assert len({each.check for each in found}) >= 15


def test_looking_changes_nothing(look: Look, database: Database):
    look()
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM encryption_keys").fetchone() == (0,)


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"ENCRYPTION_KEY": "QUFB" * 10 + "QUE="}, "encryption key"),
        ({"ENCRYPTION_PASSWORD": "password1234567890", "ENCRYPTION_SALT": "0123456789abcdef"}, "encryption key"),
        ({"SECRET_KEY": "change-me-change-me-change-me-secret"}, "SECRET_KEY"),
        ({"FLOWER_BASIC_AUTH": "admin:admin"}, "Flower"),
        ({"OPS_BROKER_URL": "redis://broker.example.org:6379/0"}, "broker"),
        ({"OPS_BROKER_URL": "rediss://:k7Wq-Zr1mXo9TtEb@broker.example.org/0?ssl_cert_reqs=none"}, "broker"),
        ({"OPS_BACKUP_STAMP": "/no/such/file"}, "backup"),
    ],
)
def test_a_setting_that_endangers_everything_is_critical(look: Look, settings: dict[str, str], check: str):
    assert worst(look(check, **settings)) is Severity.CRITICAL


def test_a_file_with_secrets_that_others_may_read_is_critical(look: Look, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("DEBUG=false\n")
    Path(".env").chmod(0o644)
    assert [each.do for each in look("files")] == [f"chmod 600 {tmp_path}/.env"]
    Path(".env").chmod(0o600)
    assert worst(look("files")) is Severity.OK


def test_a_role_that_could_change_the_trail_is_critical(look: Look, database: Database):
    for role, may in (("postgres", "everything"), ("ops_owner", "change the audit trail")):
        (found,) = look("database role", DATABASE_URL=database.stack.database_url(database.name, role=role))
        assert found.severity is Severity.CRITICAL
        assert may in found.says
    with database.connect("postgres") as root:
        root.execute("GRANT DELETE ON audit_logs TO ops_app")
        root.execute(f"GRANT CREATE ON SCHEMA {SCHEMA} TO ops_app")
    (found,) = look("database role", DATABASE_URL=database.url)
    assert "make tables of its own in our schema, DELETE on the audit trail" in found.says


def test_an_administrator_sees_whom_the_server_lets_in(look: Look, database: Database):
    root = database.stack.database_url(database.name, role="postgres")
    assert worst(look("pg_hba.conf", DATABASE_URL=root)) is Severity.OK
    rules = database.stack.postgres.data / "pg_hba.conf"
    before = rules.read_text()
    try:
        rules.write_text(before + "host all all 0.0.0.0/0 trust\nhost all all 127.0.0.1/32 md5\n")
        found = look("pg_hba.conf", DATABASE_URL=root)
    finally:
        rules.write_text(before)
    assert [each.says.partition(": ")[2] for each in found] == [
        "whoever reaches it gets in", "open to every address", "plain text is let in", "passwords by md5"
    ]  # fmt: skip


def test_what_the_schema_lacks_is_critical(look: Look, database: Database):
    with database.connect("postgres") as root:
        root.execute("UPDATE ops_alembic_version SET version_num = '20261125_1600'")
        months = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_logs'::regclass ORDER BY 1"
        for (month,) in root.execute(months).fetchall()[2:]:
            root.execute(f"DROP TABLE {month}")
    assert worst(look("migrations")) is Severity.CRITICAL
    (found,) = look("audit partitions")
    assert found.says == "only 1 months ahead"


def test_days_of_check_results_that_run_out_are_critical(look: Look, database: Database):
    (found,) = look("check partitions")
    assert found.severity is Severity.OK
    with database.connect("postgres") as root:
        days = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'check_results'::regclass ORDER BY 1"
        for (day,) in root.execute(days).fetchall()[-7:]:
            root.execute(f"DROP TABLE {day}")
    (found,) = look("check partitions")
    assert (found.severity, found.says) == (Severity.CRITICAL, "only 0 days ahead")


def test_a_trail_that_is_not_sealed_is_told_and_what_to_do(look: Look):
    (found,) = look("audit seals", "audit seals outside")
    assert found.severity is Severity.WARNING
    assert "ops audit new-key" in str(found.do)


def test_entries_that_wait_long_for_their_seal_are_told(look: Look, database: Database, tmp_path: Path, monkeypatch):
    private, public = new_pair()
    trail = Trail(database, tmp_path / "seals.jsonl", keys(private))
    trail.write(3)
    trail.seal()
    trail.write(2)
    # With the public half alone it can be seen as well.
    (found,) = look("audit seals", OPS_AUDIT_VERIFY_KEY=public)
    assert (found.severity, found.says) == (Severity.OK, "sealed up to seal 1; 2 entries wait")
    monkeypatch.setattr(checks, "SEAL_AGE", timedelta(0))
    (found,) = look("audit seals")
    assert found.severity is Severity.WARNING
    assert found.says.startswith("2 entries wait, the oldest for ")
    assert "ops audit seal" in str(found.do)
    trail.seal()
    assert worst(look("audit seals")) is Severity.OK


def test_seals_that_are_kept_nowhere_outside_are_noted(look: Look, tmp_path: Path):
    (found,) = look("audit seals outside", OPS_AUDIT_SEAL_KEY=new_pair()[0])
    assert found.severity is Severity.NOTE
    assert "OPS_AUDIT_SEAL_FILE" in str(found.do)
    assert look("audit seals outside", OPS_AUDIT_SEAL_FILE=str(tmp_path / "seals.jsonl")) == []


def test_an_admin_with_a_default_password_is_named(look: Look):
    with get_db_session() as session:
        service = DatabaseService(session)
        service.create_user_with_audit("boss", "boss@example.org", password="administrator", role="admin")
        service.create_user_with_audit("ann", "ann@example.org", password="administrator")  # no admin
        service.create_user_with_audit("root", "root@example.org", password="k7Wq-Zr1mXo9TtEb", role="admin")
    assert [each.says for each in look("accounts")] == ["boss is an admin with a default password"]


def test_unbounded_statements_are_told(look: Look, database: Database):
    (found,) = look("timeouts", OPS_DATABASE_STATEMENT_SECONDS="0")
    assert found.says == "none for: statement"


def test_the_age_of_the_last_backup_counts(look: Look, tmp_path: Path):
    stamp = tmp_path / "stamp"
    stamp.touch()
    assert worst(look("backup", OPS_BACKUP_STAMP=str(stamp))) is Severity.OK
    os.utime(stamp, (time.time() - 30 * 3600,) * 2)
    (found,) = look("backup")
    assert found.says == "the last one is 30 hours old"


def test_a_database_that_is_away_is_one_finding_and_the_rest_goes_on(look: Look):
    found = look(DATABASE_URL="postgresql://ops:hunter2-hunter2@127.0.0.1:1/ops")
    (database,) = [each for each in found if each.check == "database"]
    assert database.severity is Severity.CRITICAL
    assert {"broker", "backup", "encryption key"} <= {each.check for each in found}
    assert "hunter2" not in str(found)


def test_an_audit_that_cannot_reach_its_data_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages, "SECONDS", 0.001)
    (found,) = packages.vulnerabilities()
    assert found.severity is Severity.NOTE
    assert "could not reach its data" in found.says


@pytest.mark.parametrize(
    ("secret", "weak"),
    [
        ("short", True),
        ("aaaaaaaaaaaaaaaaaaaaaaaa", True),
        ("your-secret-key-changeme", True),
        ("k7Wq-Zr1mXo9TtEbYc3u", False),
        ("correct horse battery staple", False),
    ],
)
def test_what_is_easy_to_guess_is_weak(secret: str, weak: bool):
    assert is_weak(secret) is weak


def test_a_role_without_any_right_is_a_finding(look: Look, database: Database):
    with database.connect("postgres") as root:
        root.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM ops_app")
    found = look("migrations")
    assert worst(found) is Severity.CRITICAL
    assert "has no rights" in found[0].says


def test_plain_text_on_a_network_declared_private_is_a_note_and_elsewhere_critical(look: Look):
    url = "redis://ops:Zr1mXo9TtEbYc3uV@valkey:6379/0"
    assert worst(look("broker", OPS_BROKER_URL=url)) is Severity.CRITICAL
    (note,) = look("broker", OPS_PRIVATE_HOSTS="postgres, Valkey")
    assert note.severity is Severity.NOTE
    assert "OPS_PRIVATE_HOSTS" in note.says
    assert worst(look("broker", OPS_PRIVATE_HOSTS="postgres,valke")) is Severity.CRITICAL
