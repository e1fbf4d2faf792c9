"""What README.md shows runs as it is written there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from db import migrate
from tests.conftest import SCHEMA, Database, fresh_database, settings_from
from tests.e2e.conftest import running_platform
from tests.e2e.platform import ROOT, Platform
from tests.e2e.process import until
from worker import publish
from worker.base import OpsTask
from worker.devstack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.xdist_group("readme")]

README = (ROOT / "README.md").read_text("utf-8")
MARKED, UNMARKED = re.findall(r"(<!-- run by tests/e2e/test_readme.py -->\n)?```python\n(.*?)```", README, re.DOTALL)
MODULE = "readme_shop"


@dataclass
class Shop:
    """The application of the README, with its own worker and its own tables."""

    platform: Platform
    module: Any
    engine: Any


@pytest.fixture(scope="module")
def shop(stack: Stack, template: str) -> Iterator[Shop]:
    with fresh_database(stack, template) as database, running_platform(stack, database) as platform:
        assert MARKED[0], "the marked block comes first"
        (platform.folder / f"{MODULE}.py").write_text(f'BROKER_URL = "{stack.broker_url}"\n{MARKED[1]}')
        platform.rows("CREATE TABLE orders (id int PRIMARY KEY)")
        platform.rows("GRANT ALL ON orders TO ops_app")
        platform.worker("w1", app=MODULE, queues="celery")
        engine = create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
        sys.path.insert(0, str(platform.folder))
        try:
            publish._line = None
            yield Shop(platform, importlib.import_module(MODULE), engine)
        finally:
            sys.path.remove(str(platform.folder))
            del sys.modules[MODULE]
            engine.dispose()
        (worker,) = platform.processes
        assert worker.stop() == 0
        assert "Traceback" not in worker.text


def test_an_order_and_its_job_are_written_together_and_the_job_runs(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.execute(text(f"INSERT INTO {SCHEMA}.orders VALUES (42)"))
        job = shop.module.place_order(session, 42)
        session.commit()
    result = shop.module.charge.AsyncResult(str(job))
    assert result.get(timeout=30) == "charged 42"
    assert result.state == "SUCCESS"
    assert shop.platform.story(str(job)) == ["enqueued", "started", "succeeded"]


def test_if_it_rolls_back_there_is_no_job(shop: Shop) -> None:
    with Session(shop.engine) as session:
        session.execute(text(f"INSERT INTO {SCHEMA}.orders VALUES (43)"))
        job = shop.module.place_order(session, 43)
        session.rollback()
    assert shop.platform.rows("SELECT 1 FROM jobs WHERE id = %s", job) == []


def test_delay_and_get_work_as_the_sentence_says(shop: Shop) -> None:
    sentence = "`charge.delay(7).get(timeout=10)` and `AsyncResult(id).state` work"
    assert sentence in README
    assert shop.module.charge.delay(7).get(timeout=10) == "charged 7"


def test_any_other_language_enqueues_with_the_one_line_of_sql(shop: Shop) -> None:
    (line,) = re.findall(r"`(SELECT ops_enqueue\(.*?\))`", README, re.DOTALL)
    with shop.platform.database.connect() as plain:
        row = plain.execute(" ".join(line.split())).fetchone()
    assert row is not None
    found = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", str(row[0]))
    assert found is not None, row
    job = found.group()
    until(lambda: shop.platform.job(job)["state"] == "succeeded", "the relay rang for it")
    assert shop.module.charge.AsyncResult(job).get(timeout=10) == "charged 7"


def test_every_option_that_is_named_exists(shop: Shop) -> None:
    named = re.search(r"Options of a task: (.*?); of a call: (.*?)\. Links", README, re.DOTALL)
    assert named is not None
    of_task, of_call = (re.findall(r"`(\w+)`", part) for part in named.groups())
    assert len(of_task) == 5
    assert [name for name in of_task if not hasattr(OpsTask, name)] == []
    values = {"lock_key": "k", "unique_key": "u", "countdown": 0.1, "eta": "2026-01-01T00:00:00+00:00",
              "expires": 600, "priority": 1}  # fmt: skip
    assert set(of_call) == set(values)
    for name in of_call:
        assert shop.module.charge.apply_async((1,), **{name: values[name]}).get(timeout=30) == "charged 1"


def test_the_second_block_runs_on_a_database_made_by_db_init_with_samples(database: Database) -> None:
    assert not UNMARKED[0]
    migrate.downgrade("base")
    with settings_from({"OPS_USER": "ann"}):
        made = subprocess.run(
            [sys.executable, "-c", "from worker.cli import main; main()", "db", "init", "--sample"],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert (made.returncode, made.stderr) == (0, "")
        exec(compile(UNMARKED[1], "README.md", "exec"), {})
    with database.connect() as plain:
        rows = plain.execute("SELECT version, status, user_id FROM deployments").fetchall()
        jobs = plain.execute("SELECT task, state FROM jobs").fetchall()
    assert (rows, jobs) == ([("v1.2.3", "pending", 1)], [("tasks.deployments.run", "queued")])
