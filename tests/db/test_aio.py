"""The same front door for an event loop: one implementation, nothing held up, nothing left behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import InternalError
from sqlalchemy.orm import Session

from db import aio, keyring, repositories, service
from db.aio import AuditLogRepository, DatabaseService, DeploymentRepository, UserRepository, get_db_session
from db.connection import get_db_session as get_sync_session
from db.errors import (
    AlreadyExists,
    DatabaseUnavailable,
    EncryptionError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Throttled,
)
from db.models import APIKey, User
from db.services.logins import PAIR
from tests.conftest import settings_from
from worker import publish

PASSWORD = "correct horse battery"
#: What only services call, or is sync by nature.
NOT_LIFTED = {
    *("expect", "note_login", "get_credentials"),
    # The tick that raises and resolves alerts.
    *("clear", "end", "fire", "has_episode", "now", "open_one", "remove_old", "settle", "take_turn", "tell"),
    *("uncleared", "unsettled", "withdraw", "failures", "has_recovered", "newest_started"),
}


@pytest.fixture
def run(database) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run in a loop of its own, and see that no connection is left behind."""

    def to_end(work: Coroutine[Any, Any, Any]) -> Any:
        async def main() -> Any:
            try:
                return await work
            finally:
                if aio._engines:
                    assert aio.get_engine().pool.checkedout() == 0
                await aio.dispose()

        return asyncio.run(main())

    return to_end


def users() -> list[str]:
    with get_sync_session() as session:
        return list(session.scalars(select(User.username).order_by(User.id)))


def public(kind: type) -> set[str]:
    """Its methods: a static one touches no database, and is called on the class as it is."""
    found = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    return {name for name in found if not isinstance(inspect.getattr_static(kind, name), staticmethod)}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (service.DatabaseService, aio.DatabaseService),
        *(
            (kind, getattr(aio, name))
            for name, kind in vars(repositories).items()
            if hasattr(aio, name) and inspect.isclass(kind)
        ),
    ],
)
def test_every_method_is_there_with_the_same_signature(theirs, ours):
    assert public(theirs) - NOT_LIFTED == public(ours)
    for name in public(ours):
        assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(theirs, name))
        assert inspect.iscoroutinefunction(getattr(ours, name))


def test_the_document_as_it_was_first_written_runs(run):
    async def example_usage() -> None:
        async with get_db_session() as session:
            db_service = DatabaseService(session)
            user = await db_service.create_user_with_audit(
                username="john_doe", email="john@example.com", hashed_password="$2b$12$...", ip_address="192.168.1.1"
            )
            api_key = await db_service.store_api_key(
                user_id=user.id, service_name="aws", key_name="access_key_id", key_value="AKIA1234567890EXAMPLE"
            )
            await db_service.register_application("shop", ["deploy"])
            await db_service.register_infrastructure("here", user.id)
            deployment = await db_service.create_deployment(
                user_id=user.id, application_id=1, infrastructure_id=1, version="v1.2.3"
            )
        async with get_db_session() as session:
            user_repo = UserRepository(session)
            user = await user_repo.get_by_username("john_doe")
            deployment_repo = DeploymentRepository(session)
            deployments = await deployment_repo.get_user_deployments(user_id=user.id, status="pending")
            assert [found.id for found in deployments] == [deployment.id]
            stored = await session.get(APIKey, api_key.id)
            assert stored.encrypted_value == "AKIA1234567890EXAMPLE"
            (entry,) = (await AuditLogRepository(session).search(resource=f"user:{user.id}")).items
            assert (entry.action, str(entry.ip_address)) == ("user.created", "192.168.1.1")

    run(example_usage())


def test_errors_are_the_same_and_roll_back(run):
    async def add(name: str, email: str) -> None:
        async with get_db_session(actor="test") as session:
            door = DatabaseService(session)
            await door.create_user_with_audit(name, f"first.{email}")
            await door.create_user_with_audit(name.upper(), email)

    async def twice() -> None:
        with pytest.raises(AlreadyExists, match="a user with this username exists already"):
            await add("anna", "anna@example.org")
        async with get_db_session() as session:
            door = DatabaseService(session)
            with pytest.raises(NotFound):
                await door.get_user(4711)
            with pytest.raises(InvalidInput):
                await door.create_user_with_audit("has space", "x@example.org")
            viewer = await door.create_user_with_audit("vic", "vic@example.org", role="viewer")
            with pytest.raises(PermissionDenied):
                await DatabaseService(session, actor=viewer).register_application("a", ["x"])

    run(twice())
    assert users() == ["vic"]


class Heart:
    """A task of the loop that lets a thread go on only after it has itself gone on."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.entered = asyncio.Event()
        self.may_go = threading.Event()
        self.beats = 0
        self.task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        await self.entered.wait()
        for _ in range(10):
            await asyncio.sleep(0)
            self.beats += 1
        self.may_go.set()

    def hold(self) -> None:
        """Called by the work: were it the loop that works, nobody could let it go."""
        self.loop.call_soon_threadsafe(self.entered.set)
        assert self.may_go.wait(30), "the loop stood still"


def test_the_loop_goes_on_while_a_password_is_hashed_and_checked(run, monkeypatch):
    hearts: list[Heart] = []
    for name in ("hash", "verify"):
        real = getattr(Argon2Hasher, name)

        def held(self, *arguments, _real=real, **options):
            hearts[-1].hold()
            return _real(self, *arguments, **options)

        monkeypatch.setattr(Argon2Hasher, name, held)

    async def work() -> None:
        async with get_db_session() as session:
            hearts.append(Heart())
            await DatabaseService(session).create_user_with_audit("eve", "eve@example.org", password=PASSWORD)
        async with get_db_session() as session:
            hearts.append(Heart())
            assert await DatabaseService(session).authenticate("eve", PASSWORD, ip_address="10.0.0.1")
        async with get_db_session() as session:
            hearts.append(Heart())
            await DatabaseService(session).set_password(1, "another password")
        assert [heart.beats for heart in hearts] == [10, 10, 10]

    run(work())


def test_the_loop_goes_on_while_keys_are_derived(run, database, monkeypatch):
    hearts: list[Heart] = []
    real = keyring.PBKDF2HMAC

    def held(*arguments, **options):
        hearts[-1].hold()
        return real(*arguments, **options)

    monkeypatch.setattr(keyring, "PBKDF2HMAC", held)

    async def work() -> None:
        hearts.append(Heart())
        async with get_db_session() as session:
            await session.execute(text("SELECT 1"))
        assert hearts[0].beats == 10

    with settings_from({"ENCRYPTION_PASSWORD": "p", "ENCRYPTION_SALT": "s" * 16}):
        run(work())


def test_without_keys_a_session_opens_and_whoever_seals_is_told(run, database):
    async def work() -> None:
        async with get_db_session() as session:
            door = DatabaseService(session)
            user = await door.create_user_with_audit("eve", "eve@example.org")
            with pytest.raises(EncryptionError, match="ENCRYPTION_KEY"):
                await door.store_api_key(user.id, "aws", "token", "value")

    with settings_from({"ENCRYPTION_KEY": ""}):
        run(work())
    assert users() == ["eve"]


async def waits_for_a_lock(database) -> None:
    """Until some statement of ours waits for an advisory lock."""
    with database.connect("postgres") as plain:
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not plain.execute(waiting).fetchone():  # noqa: ASYNC110 - the event is in the database
            await asyncio.sleep(0.01)


def test_a_cancelled_task_leaves_nothing_written_and_no_connection_held(run, database):
    async def stuck() -> None:
        async with get_db_session() as session:
            await DatabaseService(session).create_user_with_audit("eve", "eve@example.org")
            await session.execute(text("SELECT pg_advisory_xact_lock(4711)"))

    async def work() -> None:
        with database.connect() as other:
            other.execute("SELECT pg_advisory_lock(4711)")
            task = asyncio.create_task(stuck())
            await waits_for_a_lock(database)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with get_db_session() as session:
            assert await session.scalar(select(func.count()).select_from(User)) == 0
            await DatabaseService(session).create_user_with_audit("ann", "ann@example.org")

    run(work())
    assert users() == ["ann"]


def test_a_login_that_is_cancelled_while_it_is_checked_counts(run, database, monkeypatch):
    hearts: list[Heart] = []
    monkeypatch.setattr(Argon2Hasher, "verify", lambda *_: hearts[-1].hold())

    async def log_in() -> None:
        async with get_db_session() as session:
            await DatabaseService(session).authenticate("eve", "wrong password", ip_address="10.0.0.1")

    async def work() -> None:
        for _ in range(PAIR.at_once):
            hearts.append(Heart())
            hearts[-1].task.cancel()
            task = asyncio.create_task(log_in())
            await hearts[-1].entered.wait()
            assert aio.get_engine().pool.checkedout() == 0  # none is held meanwhile
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            hearts[-1].may_go.set()
        with pytest.raises(Throttled):
            await log_in()

    run(work())


def test_many_logins_share_one_connection_and_who_gets_none_is_told_so(run, database):
    async def log_in() -> bool:
        async with get_db_session() as session:
            return await DatabaseService(session).authenticate("eve", PASSWORD) is not None

    async def work() -> None:
        async with get_db_session() as session:
            await DatabaseService(session).create_user_with_audit("eve", "eve@example.org", password=PASSWORD)
        with settings_from({"OPS_DATABASE_POOL_TIMEOUT": "0.1"}):
            await aio.dispose()
            async with get_db_session() as session:
                await session.execute(text("SELECT 1"))
                with pytest.raises(DatabaseUnavailable) as error:
                    await log_in()
            assert str(error.value) == "all connections of this process are in use, and none came free in time"
            await aio.dispose()

    async def together() -> None:
        async with get_db_session() as session:
            await session.execute(text("SELECT 1"))
        assert await asyncio.gather(*(log_in() for _ in range(5))) == [True] * 5

    one = {"OPS_DATABASE_POOL_SIZE": "1", "OPS_DATABASE_MAX_OVERFLOW": "0"}
    with settings_from(one):
        run(work())
    with settings_from(one):
        run(together())


def test_a_database_that_is_not_there_is_one_line(run, database):
    async def work() -> None:
        async with get_db_session() as session:
            await session.execute(text("SELECT 1"))

    with settings_from({"DATABASE_URL": "postgresql+asyncpg://ops:hunter2@127.0.0.1:1/ops"}):
        with pytest.raises(DatabaseUnavailable, match="the database does not answer: ") as error:
            run(work())
        assert "hunter2" not in str(error.value)


def test_a_second_loop_has_connections_of_its_own(run):
    async def work() -> int:
        async with get_db_session() as session:
            return await session.scalar(text("SELECT 1"))

    assert (run(work()), run(work())) == (1, 1)


def test_the_broker_is_rung_after_the_commit_and_not_by_the_loop(run, monkeypatch):
    rung: list[tuple[int, int]] = []

    def ring(bells) -> bool:
        rung.append((len(bells), threading.get_ident()))
        return True

    monkeypatch.setattr(publish, "ring", ring)
    listeners = (("after_commit", publish._after_commit), ("after_transaction_end", publish._after_transaction))
    known = event.contains(Session, *listeners[1])
    for listener in () if known else listeners:
        event.listen(Session, *listener)

    async def work() -> None:
        async with get_db_session() as session:
            door = DatabaseService(session)
            user = await door.create_user_with_audit("eve", "eve@example.org")
            shop = await door.register_application("shop", ["x"])
            here = await door.register_infrastructure("here", user.id)
            await door.create_deployment(user.id, shop.id, here.id, "v1")
            assert rung == []

    try:
        run(work())
    finally:
        for listener in () if known else listeners:
            event.remove(Session, *listener)
    assert [count for count, _ in rung] == [1]
    assert rung[0][1] != threading.get_ident()


def test_a_session_for_reports_cannot_write(run, database):
    async def work() -> None:
        async with get_db_session(read_only=True) as session:
            with pytest.raises(InternalError, match="read-only transaction"):
                await DatabaseService(session).create_user_with_audit("eve", "eve@example.org")
            await session.rollback()

    run(work())
    assert users() == []
