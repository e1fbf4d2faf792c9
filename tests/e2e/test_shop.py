"""Durable tasks of an application on its own Celery app, beside its own tables, on each pool that Celery has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, TimeoutError  # noqa: A004
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from tests.conftest import fresh_database
from tests.e2e import hostile
from tests.e2e.conftest import running_platform
from tests.e2e.platform import Platform
from tests.e2e.process import until
from worker.backend import JobError
from worker.devstack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

WAIT = 30


@dataclass
class Shop:
    """The application, its own database session, and one worker."""

    platform: Platform
    tasks: Any
    engine: Any
    pool: str

    @property
    def evidence(self) -> tuple[str, str]:
        """A file for evidence, and a gate that is closed."""
        gate = self.platform.folder / uuid4().hex
        return str(self.platform.effects.file), str(gate)

    def wait(self, job: object, state: str, seconds: float = WAIT) -> dict[str, Any]:
        job_id = str(getattr(job, "id", job))
        row: dict[str, Any] = until(
            lambda: (r := self.platform.job(job_id))["state"] == state and r, f"job {job_id} is {state}", seconds
        )
        return row


# One worker process for all tests of a pool, also where the tests run in several processes.
POOLS = [pytest.param(pool, marks=pytest.mark.xdist_group(f"shop-{pool}")) for pool in ("prefork", "threads", "solo")]


@pytest.fixture(scope="module", params=POOLS)
def shop(request: pytest.FixtureRequest, stack: Stack, template: str) -> Iterator[Shop]:
    with fresh_database(stack, template) as database, running_platform(stack, database) as platform:
        platform.rows("CREATE TABLE public.orders (id int PRIMARY KEY)")
        platform.rows("GRANT ALL ON public.orders TO ops_app")
        tasks = platform.call_as("tests.e2e.shop")
        platform.worker("w1", "-P", request.param, app="tests.e2e.shop", queues="shop", processes=2)
        engine = create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
        yield Shop(platform, tasks, engine, request.param)
        engine.dispose()
        for process in platform.processes:
            assert process.is_alive, "the worker has survived all of it"
            assert process.stop() == 0
            assert "heartbeat_stumbled" not in process.text
            assert "relay_failed" not in process.text


def test_a_job_is_written_in_the_applications_own_transaction(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.execute(text("INSERT INTO orders VALUES (1)"))
        job = shop.tasks.ship.enqueue(session, order=1)
        assert shop.platform.rows("SELECT 1 FROM jobs WHERE id = %s", job) == []
        session.commit()
    assert shop.tasks.ship.AsyncResult(str(job)).get(timeout=WAIT) == {"order": 1}


def test_a_rollback_leaves_nothing(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.execute(text("INSERT INTO orders VALUES (2)"))
        job = shop.tasks.ship.enqueue(session, order=2)
        session.rollback()
    assert shop.platform.rows("SELECT 1 FROM jobs WHERE id = %s", job) == []
    assert shop.platform.rows("SELECT 1 FROM public.orders WHERE id = 2") == []
    with Session(shop.engine) as session:
        with session.begin_nested() as savepoint:
            job = shop.tasks.ship.enqueue(session, order=2)
            savepoint.rollback()
        session.commit()
    assert shop.platform.rows("SELECT 1 FROM jobs WHERE id = %s", job) == []


def test_delay_and_get_work_as_celerys_users_expect(shop: Shop) -> None:
    assert shop.tasks.ship.delay(5).get(timeout=WAIT) == {"order": 5}
    assert shop.tasks.ship.apply_async(kwargs={"order": 6}).get(timeout=WAIT) == {"order": 6}
    assert shop.tasks.ship(7) == {"order": 7}, "called as a function it is one"
    with pytest.raises(InvalidInput, match="order"):
        shop.tasks.ship.delay()
    with pytest.raises(TimeoutError):
        shop.tasks.ship.apply_async((8,), countdown=60).get(timeout=0.2)


def test_a_result_goes_through_celerys_states(shop: Shop) -> None:
    file, gate = shop.evidence
    later = shop.tasks.ship.apply_async((1,), countdown=3600)
    assert later.state == "PENDING"
    runs = shop.tasks.charge.delay(file, gate)
    until(lambda: runs.state == "STARTED", "it has started")
    shop.platform.folder.joinpath(gate).touch()
    assert runs.get(timeout=WAIT) > 0
    assert shop.tasks.app.AsyncResult(runs.id).state == "SUCCESS"
    again = shop.tasks.asks_again.delay(1, 3600)
    until(lambda: again.state == "RETRY", "it waits for its second attempt")
    failed = shop.tasks.once.delay("no such card")
    with pytest.raises(JobError, match="failed: ValueError: no such card"):
        failed.get(timeout=WAIT)
    assert failed.state == "FAILURE"
    shop.platform.cancel_job(later.id)
    assert later.state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        later.get(timeout=WAIT)
    assert shop.tasks.app.AsyncResult(str(uuid4())).state == "PENDING"


def test_what_is_idempotent_is_tried_again_with_growing_pauses(shop: Shop) -> None:
    assert shop.tasks.flaky.delay(2).get(timeout=WAIT) == 3
    hopeless = shop.tasks.flaky.delay(9)
    row = shop.wait(hopeless, "failed")
    assert (row["attempt"], row["outcome"], row["error"]) == (3, "failed", "ConnectionError: attempt 3")
    story = ["enqueued", "started", "retried", "started", "retried", "started", "failed"]
    assert shop.platform.story(hopeless.id) == story


def test_a_task_may_ask_to_be_tried_again(shop: Shop) -> None:
    result = shop.tasks.asks_again.delay(3, 0)
    assert result.get(timeout=WAIT) == 3
    assert shop.platform.job(result.id)["attempt"] == 4


def test_what_is_not_idempotent_is_tried_once(shop: Shop) -> None:
    row = shop.wait(shop.tasks.once.delay("x"), "failed")
    assert (row["attempt"], row["failures"]) == (1, 1)


def test_a_body_cannot_end_the_process(shop: Shop) -> None:
    row = shop.wait(shop.tasks.leaves.delay(3), "failed")
    assert row["error"] == "SystemExit: 3"


def test_one_lock_key_lets_one_run_at_a_time_in_order(shop: Shop) -> None:
    file, gate = shop.evidence
    key = uuid4().hex
    jobs = [shop.tasks.charge.apply_async((file, gate), lock_key=key) for _ in range(4)]
    shop.platform.folder.joinpath(gate).touch()
    fences = [job.get(timeout=WAIT) for job in jobs]
    assert fences == sorted(fences), "in the order in which they were asked for, each with a larger fence"
    shop.platform.check_effects(begun=False)


def test_one_unique_key_is_one_job(shop: Shop) -> None:
    key = uuid4().hex
    first = shop.tasks.ship.apply_async((1,), unique_key=key, countdown=3600)
    second = shop.tasks.ship.apply_async((2,), unique_key=key)
    assert first.id == second.id
    own = str(uuid4())
    assert shop.tasks.ship.apply_async((1,), task_id=own).id == own
    assert shop.tasks.ship.apply_async((1,), task_id=own).id == own
    assert shop.tasks.ship.AsyncResult(own).get(timeout=WAIT) == {"order": 1}
    shop.platform.cancel_job(first.id)


def test_countdown_eta_expiry_and_priority_are_the_rows(shop: Shop) -> None:
    def soon() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=1)

    results = [
        shop.tasks.ship.apply_async((1,), **options)
        for options in ({"countdown": 1}, {"eta": soon()}, {"eta": soon().isoformat()})
    ]
    for result in results:
        row = shop.wait(result, "succeeded")
        assert row["started_at"] >= row["run_at"]
        assert (row["run_at"] - row["created_at"]).total_seconds() > 0.5
    expired = shop.tasks.ship.apply_async((1,), countdown=3600, expires=0.5)
    assert shop.wait(expired, "cancelled")["outcome"] == "expired"
    assert expired.state == "REVOKED"
    urgent = shop.tasks.ship.apply_async((1,), priority=1)
    assert urgent.get(timeout=WAIT) == {"order": 1}
    assert shop.platform.job(urgent.id)["priority"] == 1


def test_links_chains_and_chords_are_refused_with_one_clear_error(shop: Shop) -> None:
    ship = shop.tasks.ship
    before = shop.platform.rows("SELECT count(*) FROM jobs")
    for refused in (
        lambda: ship.apply_async((1,), link=ship.s()),
        lambda: ship.apply_async((1,), link_error=ship.s()),
        lambda: chain(ship.s(1), ship.si(2)).apply_async(),
        lambda: chord([ship.s(1), ship.s(2)])(ship.si(3)),
        lambda: (group(ship.s(1), ship.s(2)) | ship.si(3)).apply_async(),
        lambda: shop.tasks.plain.apply_async((1,), link=ship.s()),
        lambda: shop.tasks.plain.apply_async((1,), link_error=[ship.s()]),
        lambda: chain(shop.tasks.plain.s(1), shop.tasks.plain.s(), ship.s()).apply_async(),
        lambda: chain(shop.tasks.plain.s(1), group(ship.s(), shop.tasks.plain.s())).apply_async(),
    ):
        with pytest.raises(InvalidInput, match=r"enqueues? the next job from its body instead") as error:
            refused()
        assert "\n" not in str(error.value)
    assert shop.platform.rows("SELECT count(*) FROM jobs") == before
    with pytest.raises(InvalidInput, match="time_limit"):
        ship.apply_async((1,), time_limit=5)


def test_a_group_works(shop: Shop) -> None:
    results = group(shop.tasks.ship.s(number) for number in range(5)).apply_async()
    assert results.get(timeout=WAIT) == [{"order": number} for number in range(5)]


@pytest.mark.parametrize("kind", ["set", "nul", "half", "large", "nan", "none"])
def test_a_result_that_cannot_be_kept_is_left_out_and_the_job_has_succeeded(shop: Shop, kind: str) -> None:
    result = shop.tasks.answer.delay(kind)
    assert result.get(timeout=WAIT) is None
    assert result.state == "SUCCESS"


def test_a_forged_message_runs_no_body(shop: Shop) -> None:
    """Neither with an id that the ledger does not hold, nor by way of a task of Celery's own that calls others."""
    file, gate = shop.evidence
    app = shop.tasks.app
    app.send_task("tests.e2e.shop.charge", (file, gate), task_id=str(uuid4()), queue="shop")
    starmap = {"task": {"task": "tests.e2e.shop.charge"}, "it": [[file, gate]]}
    app.send_task("celery.starmap", kwargs=starmap, queue="shop")
    until(lambda: shop.platform.depth("shop") == 0, "both were heard")
    assert shop.tasks.ship.delay(1).get(timeout=WAIT) == {"order": 1}
    worker = shop.platform.processes[0]
    until(lambda: "it names a durable task to be started" in worker.text, "the second was dropped")
    assert not [run for run in shop.platform.effects.read() if run.job == "None"]
    shop.platform.check_effects(begun=False)


def starts_a_durable_task(ship: str, tidy_up: str, arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Forged messages, each of which had Celery enqueue or call a durable task, with arguments of the forger's."""
    signature = {"task": ship, "args": [666], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True}
    nested = signature | {"task": "celery.group", "kwargs": {"tasks": [signature]}, "subtask_type": "group"}
    plain = ship.replace("ship", "plain")
    for embed in (
        {"callbacks": [signature]}, {"callbacks": [ship]}, {"callbacks": [nested]}, {"chain": [signature]},
        {"callbacks": [signature | {"task": plain, "options": {"link": [signature]}}]},
    ):  # fmt: skip
        yield hostile.message(plain, str(uuid4()), [3], embed=hostile.EMBED | embed, queue="shop")
    # Celery calls those back with (request, exception, traceback) that take as many arguments: without any row.
    for errback in (signature, ship, signature | {"task": tidy_up, "args": arguments}, tidy_up):
        embed = hostile.EMBED | {"errbacks": [errback]}
        yield hostile.message(plain, str(uuid4()), [], embed=embed, queue="shop")
        yield hostile.message(plain, str(uuid4()), [3], embed=embed, queue="shop", timelimit=[0.001, None])
    group_of_one = [[signature], [["x", None], None], "g", []]
    for task, args, kwargs in (
        ("celery.group", group_of_one, {}), ("celery.chunks", [signature, [[1]], 1], {}),
        ("celery.map", [signature, [1]], {}), ("celery.chord_unlock", ["g", signature], {"result": []}),
    ):  # fmt: skip
        yield hostile.message(task, str(uuid4()), args, kwargs, queue="shop")
    first_protocol = hostile.message(plain, str(uuid4()), queue="shop")
    body = {"task": plain, "id": str(uuid4()), "args": [3], "kwargs": {}, "callbacks": [signature]}
    first_protocol["body"] = hostile.base64.b64encode(json.dumps(body).encode()).decode()
    yield first_protocol | {"headers": {}}


def test_a_forged_message_enqueues_nothing(shop: Shop) -> None:
    """Not by the callbacks, chains and chords that a message for an ordinary task may carry."""
    platform, tasks = shop.platform, shop.tasks
    before = platform.rows("SELECT count(*) FROM jobs")[0]["count"]
    worker = platform.processes[0]
    dropped = worker.text.count("it names a durable task")
    forged = list(starts_a_durable_task(tasks.ship.name, tasks.tidy_up.name, [*shop.evidence, "/dev/null"]))
    for message in forged:
        platform.broker.lpush("shop", json.dumps(message))
    until(lambda: platform.depth("shop") == 0, "they were heard")
    assert tasks.ship.delay(1).get(timeout=WAIT) == {"order": 1}
    after = tasks.plain.delay(21)
    until(lambda: f"{after.id}] succeeded" in worker.text, "ordinary messages are handled on")
    assert worker.text.count("it names a durable task") == dropped + len(forged)
    assert platform.rows("SELECT count(*) FROM jobs")[0]["count"] == before + 1
    assert not platform.rows("SELECT 1 FROM jobs WHERE args @> '[666]'")
    assert not [run for run in platform.effects.read() if run.job == "None"]


def test_ordinary_tasks_stay_what_they_are(shop: Shop) -> None:
    result = shop.tasks.plain.delay(4)
    worker = shop.platform.processes[0]
    until(lambda: f"{result.id}] succeeded" in worker.text, "it ran")
    with pytest.raises(NotImplementedError):
        result.get(timeout=1)
