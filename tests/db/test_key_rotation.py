"""Keys change while everything runs, and nothing becomes unreadable on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import DateTime, String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import migrations
from db.connection import get_db_session
from db.encryption import Encrypted, Unreadable, get_keyring
from db.models import APIKey
from db.repositories import EncryptedTable, encrypted_tables
from db.services import keys
from tests.conftest import SCHEMA, Database, settings_from
from tests.db.sealing import AFTER, BEFORE, OURS, everything_is_new, rotate, used, wait_until
from worker.servers import OWNER_ROLE

ROOT = Path(migrations.__file__).parent.parent
Sql = Callable[..., list[tuple]]


def test_everything_is_sealed_anew_and_opens_without_the_old_key(sealed):
    sealed(25)
    assert used() == {"api_keys": {"old": 25}, "infrastructure": {"old": 25}}
    steps = rotate(batch=10)
    assert [step.rows for step in steps] == [10, 10, 5, 10, 10, 5]
    everything_is_new(25)
    assert rotate() == []


def test_a_dry_run_opens_everything_and_changes_nothing(sealed, sql: Sql):
    sealed(3)
    sql("UPDATE api_keys SET encrypted_value = 'v1:gone:x' WHERE key_name = 'k1'")
    before = sql("SELECT encrypted_value FROM api_keys ORDER BY id"), sql("SELECT count(*) FROM audit_logs")
    steps = rotate(dry_run=True)
    assert [(step.rows, len(step.unopened)) for step in steps] == [(2, 1), (3, 0)]
    assert before == (sql("SELECT encrypted_value FROM api_keys ORDER BY id"), sql("SELECT count(*) FROM audit_logs"))


def test_a_row_that_does_not_open_is_told_once_and_the_others_go_on(sealed, sql: Sql):
    sealed(5)
    sql("UPDATE api_keys SET encrypted_value = 'v1:gone:x' WHERE key_name = 'k1'")
    sql("UPDATE api_keys SET encrypted_value = 'plain text' WHERE key_name = 'k3'")
    bad = [unopened for step in rotate(batch=2) for unopened in step.unopened]
    ids = dict(sql("SELECT key_name, id::text FROM api_keys"))
    table = f"{SCHEMA}.api_keys"
    assert bad == [
        keys.Unopened(table, "encrypted_value", ids["k1"], "gone", "this process does not hold that key"),
        keys.Unopened(table, "encrypted_value", ids["k3"], None, "it is not an encrypted value"),
    ]
    assert used()["api_keys"] == {"new": 3, "gone": 1, None: 1}


def test_whoever_edits_a_row_meanwhile_is_not_disturbed(sealed, sql: Sql):
    sealed(1)
    look = "SELECT version_id, updated_at FROM api_keys"
    before = sql(look)
    with settings_from(BEFORE), get_db_session() as editor:
        edited = editor.scalars(select(APIKey)).one()
        steps = list(_rotation_beside().run())
        assert sum(step.rows for step in steps) == 2
        assert sql(look) == before
        edited.key_name = "renamed"
    assert used()["api_keys"] == {"new": 1}
    assert sql("SELECT key_name FROM api_keys") == [("renamed",)]


def _rotation_beside() -> keys.Rotation:
    """In this process, whose settings stay as they are: only what seals is another key."""
    keyring = get_keyring()
    keyring.primary = keyring.get("new")
    return keys.Rotation(OURS, {"actor": "ann"})


def test_each_batch_is_in_the_trail_with_its_rows(sealed, sql: Sql):
    sealed(3)
    rotate(batch=2)
    batches = sql(
        "SELECT resource_id, actor, details FROM audit_logs WHERE action = 'encryption_key.rotated' ORDER BY id"
    )
    assert [(key_id, actor) for key_id, actor, _ in batches] == [("new", "ann")] * 4
    assert [details["rows"] for *_, details in batches] == [2, 1, 2, 1]
    # A row's own entry is not left out: nobody could tell a rotation from a change that hides as one.
    entries = sql("SELECT changes, details FROM audit_logs WHERE action = 'secret.updated'")
    assert entries == [({"encrypted_value": ["[secret]", "[secret]"]}, {"via": "rotation"})] * 3


def test_a_row_that_somebody_holds_is_waited_for_and_others_are_not(sealed, database: Database):
    sealed(5)
    with database.connect() as holder, ThreadPoolExecutor(1) as threads:
        with holder.transaction():
            holder.execute("SELECT 1 FROM api_keys WHERE key_name = 'k0' FOR UPDATE")
            with settings_from(AFTER):
                steps = keys.Rotation(OURS, {"actor": "ann"}).run()
            assert next(steps).rows == 4
            running = threads.submit(lambda: list(steps))
        running.result(timeout=30)
    assert used()["api_keys"]["new"] == 5


def test_rows_that_stay_held_are_told(sealed, database: Database, monkeypatch):
    sealed(2)
    monkeypatch.setattr(keys, "TRIES", 2)
    monkeypatch.setattr(keys, "PAUSE_SECONDS", 0)
    with database.connect() as holder, holder.transaction():
        holder.execute("SELECT 1 FROM api_keys WHERE key_name = 'k0' FOR UPDATE")
        steps = rotate()
    assert [(step.table.rpartition(".")[2], step.rows, step.held) for step in steps] == [
        ("api_keys", 1, 0), ("api_keys", 0, 1), ("infrastructure", 2, 0),
    ]  # fmt: skip


@contextmanager
def rotating(database: Database, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`ops encryption-key rotate` as a process of its own."""
    environment = os.environ | AFTER | {"OPS_USER": "ann", "OPS_DATABASE_SCHEMA": SCHEMA}
    code = "from worker.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "encryption-key", "rotate", "--json", *arguments],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


@pytest.fixture
def admin(database: Database) -> None:
    from db.services import sample

    sample.first_admin("ann")


#: Where a rotation stands when it cannot take the next step: between two tables, and in the middle of a batch.
STOPS = {
    "between": ("LOCK TABLE infrastructure IN EXCLUSIVE MODE", {"new": 12}),
    "within": ("LOCK TABLE audit_logs IN SHARE MODE", {"old": 12}),
}


@pytest.mark.parametrize("where", STOPS)
def test_a_rotation_that_is_killed_loses_nothing_and_is_taken_up_again(sealed, admin, database, where):
    sealed(12)
    lock, rotated = STOPS[where]
    with database.connect(OWNER_ROLE) as blocker, rotating(database, "--batch", "5") as process:
        with blocker.transaction():
            blocker.execute(lock)
            _wait_for_waiter(blocker, process)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            assert used_beside(database)["api_keys"] == rotated
        assert used()["infrastructure"] == {"old": 12}
    with rotating(database) as again:
        finish(again)
    everything_is_new(12)


def _wait_for_waiter(blocker: psycopg.Connection, process: subprocess.Popen[str]) -> None:
    """Until another session waits for a table that this transaction has locked."""
    waiting = 0
    while not waiting:
        assert process.poll() is None, process.communicate()
        ((waiting, _),) = blocker.execute(
            "SELECT count(*), pg_sleep(0.02) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
        ).fetchall()


def used_beside(database: Database) -> dict[str, dict[str, int]]:
    """As :func:`used`, of the one table that nobody has locked."""
    with database.connect() as look:
        rows = look.execute("SELECT split_part(encrypted_value, ':', 2), count(*) FROM api_keys GROUP BY 1").fetchall()
    return {"api_keys": dict(rows)}


def test_two_rotations_at_once_share_the_work(sealed, admin, database, sql: Sql):
    sealed(60)
    with rotating(database, "--batch", "3") as one, rotating(database, "--batch", "3") as two:
        finish(one)
        finish(two)
    everything_is_new(60)
    assert sql("SELECT sum((details->>'rows')::int) FROM audit_logs WHERE action = 'encryption_key.rotated'") == [
        (120,)
    ]


def test_what_writers_write_meanwhile_is_kept_and_sealed_anew(sealed, admin, database):
    """Writers of the old key: a process that was not started anew yet."""
    sealed(40)
    stop, written = threading.Event(), {}
    keyring = get_keyring()
    assert keyring.ids[0] == "old"

    def write() -> None:
        engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
        n = 0
        while not stop.is_set():
            n += 1
            with Session(engine) as session:
                name = f"k{n % 40}"
                row = session.scalars(select(APIKey).where(APIKey.key_name == name).with_for_update()).one()
                row.encrypted_value = written[name] = f"written {n}"
                session.commit()
        engine.dispose()

    writer = threading.Thread(target=write)
    with rotating(database, "--batch", "2", "--json") as process:
        writer.start()
        try:
            wait_until(lambda: used_beside(database)["api_keys"].get("new", 0) > 5)
        finally:
            stop.set()
            writer.join()
        finish(process)
    with rotating(database) as again:
        finish(again)
    with settings_from(AFTER), get_db_session() as session:
        values = {k.key_name: k.encrypted_value for k in session.scalars(select(APIKey))}
    assert written
    assert values == {f"k{n}": f"v{n}" for n in range(40)} | written
    assert used()["api_keys"] == {"new": 40}


# An application's own tables ------------------------------------------------------------------------------------------


class Shop(DeclarativeBase):
    pass


class Card(Shop):
    """A composite key whose parts hold what joins them, two encrypted columns, a time that counts updates."""

    __tablename__ = "cards"

    country: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    pan: Mapped[str | None] = mapped_column(Encrypted("cards.pan"))
    pin: Mapped[str | None] = mapped_column(Encrypted("cards.pin"))
    updated_at: Mapped[object] = mapped_column(DateTime(timezone=True), server_default=func.now(), onupdate=func.now())


@pytest.fixture
def cards(database: Database) -> Iterator[EncryptedTable]:
    url = database.stack.database_url(database.name, role="postgres")
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    Shop.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("GRANT ALL ON public.cards TO ops_app")
    engine.dispose()
    (table,) = encrypted_tables([Shop.metadata])
    with database.connect() as plain:
        plain.execute("SET search_path = public")
        yield table


def test_an_applications_table_with_a_composite_key_is_rotated(sealed, cards, database: Database):
    with settings_from(BEFORE), get_db_session() as session:
        for n in range(7):
            pin = None if n == 3 else f"{n:04}"
            session.add_all([Card(country=c, number=n, pan=f"{c}{n}", pin=pin) for c in ("a/b", "c")])
    with database.connect() as plain:
        times = plain.execute("SELECT updated_at FROM public.cards ORDER BY 1").fetchall()
        plain.execute("UPDATE public.cards SET pin = 'v1:gone:x' WHERE country = 'a/b' AND number = 2")
    with settings_from(AFTER):
        steps = list(keys.Rotation([cards], {"actor": "ann"}, batch=4).run())
        assert [step.rows for step in steps] == [4, 4, 4, 2]
        (bad,) = [bad for step in steps for bad in step.unopened]
        assert (bad.table, bad.column, bad.id) == ("cards", "pin", "a\\/b/2")
        with get_db_session() as session:
            assert dict(cards.usage(session, "pan")) == {"new": 14}
            assert dict(cards.usage(session, "pin")) == {"new": 11, "gone": 1}
            rows = session.scalars(select(Card).where(Card.country == "c").order_by(Card.number)).all()
            assert [(row.pan, row.pin) for row in rows][2:4] == [("c2", "0002"), ("c3", None)]
            assert isinstance(session.get_one(Card, ("a/b", 2)).pin, Unreadable)
    with database.connect() as plain:
        assert plain.execute("SELECT updated_at FROM public.cards ORDER BY 1").fetchall() == times
