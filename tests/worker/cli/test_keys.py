"""Keys are changed by hand: each command says exactly what to set, or writes it where the keys are."""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from db import preflight
from db.connection import conninfo
from db.encryption import decrypt_field, encrypt_field, get_keyring, new_key
from db.ledger import Ledger
from tests.conftest import SCHEMA, Database, forget_settings, settings_from
from tests.worker.cli.conftest import Ops
from worker.cli import envfile
from worker.devstack import Stack

KEY = new_key()


@pytest.fixture
def env_file(ready: Ops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The keys come from `.env` in the current folder, and from nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENCRYPTION_KEY")
    path = tmp_path / ".env"
    path.write_text(f"# mine\nENCRYPTION_KEY={KEY}\nexport OTHER='a b'\n")
    forget_settings()
    preflight.check_start(patience=0)
    yield path
    forget_settings()


def worker(name: str, *keys: str) -> None:
    ledger = Ledger(conninfo(), SCHEMA)
    ledger.say_alive(name, "worker", name, "host", 1, {"keys": list(keys)})
    ledger.close()


def ids() -> list[str]:
    forget_settings()
    return get_keyring().ids


def test_a_key_is_changed_in_three_steps_in_the_file_the_keys_come_from(ready: Ops, env_file: Path) -> None:
    (old,) = ids()
    assert ready("secret", "set", "a/b", stdin="the secret").code == 0
    worker("w1", old)

    added = ready("--json", "encryption-key", "add", "--id", "2027", "--write")
    assert added.json == {"id": "2027", "written": str(env_file), "set": None}
    assert ids() == [old, "2027"]
    refused = ready("encryption-key", "promote", "2027", "--write")
    assert (refused.code, "not held by w1" in refused.error) == (5, True)
    assert ids() == [old, "2027"]

    worker("w1", old, "2027")
    promoted = ready("--json", "encryption-key", "promote", "2027", "--write")
    assert promoted.json["instead_of"] == old
    assert ids() == ["2027", old]
    assert ready("encryption-key", "promote", "2027").stdout.startswith("key 2027 seals already")

    assert ready("--json", "encryption-key", "usage").json["items"] == [
        {"key": old, "table": f"{SCHEMA}.api_keys", "column": "encrypted_value", "rows": 1}
    ]
    assert f"the key {old} still seals in w1" in ready("encryption-key", "retire", old, "--write").error
    rotated = ready("--json", "encryption-key", "rotate")
    assert (rotated.code, rotated.json) == (0, {"rows": 1, "dry_run": False, "unopened": [], "held": 0})
    assert "w1 seals with" in rotated.stderr

    worker("w1", "2027", old)
    assert ready("--json", "encryption-key", "retire", old, "--write").json["written"] == str(env_file)
    assert ids() == ["2027"]
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    lines = env_file.read_text().splitlines()
    assert (lines[0], lines[1], lines[3]) == ("# mine", "export OTHER='a b'", "OPS_ENCRYPTION_PRIMARY=2027")
    assert [path.name for path in env_file.parent.iterdir()] == [".env"]
    listed = {item["id"]: item for item in ready("--json", "encryption-key", "list").json["items"]}
    assert (listed["2027"]["seals"], listed["2027"]["workers"]) == (True, "1 of 1")
    assert (listed[old]["from"], listed[old]["retired_at"] is not None) == ("not held here", True)


def test_a_shell_with_a_retired_key_is_told_so_in_one_line(ready: Ops, env_file: Path) -> None:
    (old,) = ids()
    for words in (("add", "--id", "2027"), ("promote", "2027"), ("retire", old)):
        assert ready("encryption-key", *words, "--write").code == 0
    with settings_from({"ENCRYPTION_KEY": KEY, "OPS_ENCRYPTION_PRIMARY": old}):
        refused = ready("secret", "set", "a/b", stdin="the secret")
    assert refused.code == 5
    assert "Start this process anew" in refused.stderr
    assert f"the encryption key {old} was retired and seals nothing any more" in refused.error


def test_without_write_the_change_is_said_and_no_file_is_touched(ready: Ops, env_file: Path) -> None:
    before = env_file.read_text()
    added = ready("encryption-key", "add", "--id", "2027")
    (entry,) = [line for line in added.stdout.splitlines() if "OPS_ENCRYPTION_KEYS" in line]
    value = entry.partition("OPS_ENCRYPTION_KEYS=")[2]
    assert env_file.read_text() == before
    with settings_from({"OPS_ENCRYPTION_KEYS": value}):
        assert get_keyring().ids[1:] == ["2027"]
        more = ready("encryption-key", "add", "--id", "2028")
        assert value not in more.stdout  # the keys that are there already are not shown
        assert "OPS_ENCRYPTION_KEYS, at its end: ,2028:" in more.stdout
        promoted = ready("--json", "encryption-key", "promote", "2027").json
    assert promoted["set"] == ["OPS_ENCRYPTION_PRIMARY=2027"]


def test_a_change_is_not_written_where_the_environment_would_hide_it(ready: Ops, env_file: Path) -> None:
    before = env_file.read_text()
    for environment in ({"OPS_ENCRYPTION_KEYS": f"x:{new_key()}"}, {"OPS_ENCRYPTION_KEYS_FILE": "/dev/null"}):
        if "OPS_ENCRYPTION_KEYS_FILE" in environment:
            path = env_file.parent / "keys"
            path.write_text(f"x:{new_key()}")
            environment = {"OPS_ENCRYPTION_KEYS_FILE": str(path)}
        with settings_from(environment):
            refused = ready("encryption-key", "add", "--write")
            assert refused.code == 5
            assert "change them where they come from" in refused.error
    assert env_file.read_text() == before


def test_a_password_may_hold_any_character(ready: Ops, env_file: Path) -> None:
    password = "c:o,l=o#n $HOME 'ü'"
    added = ready("encryption-key", "add", "--id", "pw", "--password", "--write", stdin=password + "\n")
    assert added.code == 0, added.stderr
    assert ids()[1:] == ["pw"]
    words = env_file.read_text().splitlines()[-1].partition("=")[2].split(":")
    assert words[:3] == ["pw", "pbkdf2", "600000"]
    assert base64.b64decode(words[4]).decode() == password
    assert password not in added.stdout
    assert "fewer than 12" in ready("encryption-key", "add", "--password", stdin="short\n").error


def test_a_key_that_is_added_beside_a_password_does_not_seal_yet(ready: Ops, env_file: Path) -> None:
    env_file.write_text(
        "ENCRYPTION_PASSWORD='correct horse'\nENCRYPTION_SALT=battery-staple\nOPS_PBKDF2_ITERATIONS=100000\n"
    )
    (old,) = ids()
    assert ready("encryption-key", "add", "--id", "2027", "--write").code == 0
    assert ids() == [old, "2027"]


def test_an_id_is_not_used_again(ready: Ops, env_file: Path) -> None:
    (old,) = ids()
    assert ready("encryption-key", "add", "--id", old).code == 5
    assert ready("encryption-key", "add", "--id", "a:b").code == 2


def test_what_does_not_open_is_told_and_the_exit_code_says_so(ready: Ops, env_file: Path, sql) -> None:
    ready("secret", "set", "a/b", stdin="the secret")
    sql("UPDATE api_keys SET encrypted_value = 'v1:gone:x'")
    done = ready("encryption-key", "rotate")
    assert done.code == 1
    assert "does not open with key gone: this process does not hold that key" in done.stdout
    assert ready("--json", "encryption-key", "rotate", "--dry-run").json["unopened"][0]["key_id"] == "gone"


def test_every_value_can_be_tried(ready: Ops, env_file: Path, sql) -> None:
    for name in ("a/b", "a/c"):
        assert ready("secret", "set", name, stdin="the secret").code == 0
    done = ready("--json", "encryption-key", "check")
    assert (done.code, done.json) == (0, {"rows": 2, "unopened": []})
    # Sealed with the current key, and damaged: what a rotation has no reason to open.
    sql("UPDATE api_keys SET encrypted_value = left(encrypted_value, 60) WHERE key_name = 'c'")
    done = ready("encryption-key", "check")
    assert done.code == 1
    assert "damaged, or sealed for another field or key" in done.stdout
    assert done.stdout.endswith("rows: 2; values that do not open: 1\n")


def test_keys_are_changed_by_admins(ready: Ops, env_file: Path) -> None:
    (old,) = ids()
    assert ready("user", "add", "bob", "bob@example.org").code == 0
    for words in (("add",), ("promote", old), ("rotate",), ("retire", old)):
        refused = ready("encryption-key", *words, user="bob")
        assert (refused.code, "needs the role admin" in refused.error) == (5, True)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nonsense", "does not name metadata"),
        ("no_such_module:Base", "No module named"),
        ("db.models:Nothing", "has no attribute"),
        ("db.models:APIKey.id", "neither metadata"),
    ],
)
def test_metadata_that_is_none_is_one_line(ready: Ops, env_file: Path, spec: str, words: str) -> None:
    refused = ready("encryption-key", "usage", "--metadata", spec)
    assert refused.code == 2
    assert words in refused.error


SHOP = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from db.encryption import Encrypted

class Base(DeclarativeBase):
    pass

class Card(Base):
    __tablename__ = "cards"
    id: Mapped[int] = mapped_column(primary_key=True)
    pan: Mapped[str] = mapped_column(Encrypted("cards.pan"))
"""


def test_an_applications_own_tables_are_rotated_and_counted(ready: Ops, env_file: Path, database: Database) -> None:
    (env_file.parent / "shop_of_keys.py").write_text(SHOP)
    shop = ("--metadata", "shop_of_keys:Base")
    missing = ready("encryption-key", "usage", *shop)
    assert (missing.code, missing.error) == (6, "there is no table cards in this database, as this role sees it")
    (old,) = ids()
    with database.connect("postgres") as root:
        root.execute("CREATE TABLE public.cards (id int PRIMARY KEY, pan text NOT NULL)")
        root.execute("GRANT ALL ON public.cards TO ops_app")
        root.execute("INSERT INTO public.cards VALUES (1, %s)", [encrypt_field("4111", "cards.pan")])
        assert ready("encryption-key", "add", "--id", "2027", "--write").code == 0
        assert ready("encryption-key", "promote", "2027", "--write").code == 0
        assert ready("--json", "encryption-key", "rotate").json["rows"] == 0
        kept = ready("encryption-key", "retire", old, *shop)
        assert (kept.code, "rows: 1 of cards.pan" in kept.error) == (5, True)
        assert ready("--json", "encryption-key", "rotate", *shop).json["rows"] == 1
        ((stored,),) = root.execute("SELECT pan FROM public.cards").fetchall()
        assert ready("encryption-key", "retire", old, *shop).code == 0
    ids()
    assert decrypt_field(stored, "cards.pan") == "4111"


def test_a_file_that_cannot_be_changed_safely_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("NOTE='two\nENCRYPTION_KEY=lines'\nENCRYPTION_KEY=a\n")
    with pytest.raises(Exception, match="change it by hand"):
        envfile.change(path, {"ENCRYPTION_KEY": "b"})
    assert path.read_text() == "NOTE='two\nENCRYPTION_KEY=lines'\nENCRYPTION_KEY=a\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_embedded_stack_keeps_the_keys_that_were_changed(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    stack._write_env()
    first = stack.env_file.read_text()
    assert "\nENCRYPTION_KEY=" in first
    envfile.change(
        stack.env_file,
        {"ENCRYPTION_KEY": None, "OPS_ENCRYPTION_KEYS": f"2027:{KEY}", "OPS_ENCRYPTION_PRIMARY": "2027"},
    )
    stack._write_env()
    lines = stack.env_file.read_text().splitlines()
    assert f"OPS_ENCRYPTION_KEYS=2027:{KEY}" in lines
    assert "OPS_ENCRYPTION_PRIMARY=2027" in lines
    assert not [line for line in lines if line.startswith("ENCRYPTION_KEY=")]
