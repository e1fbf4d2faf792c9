"""Our own worker image, as pytest-celery runs workers: it does its work, dies, and comes back."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from db.encryption import new_key
from tests.e2e.process import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("containers")]


@pytest.fixture
def default_worker_env(default_worker_env: dict[str, str], database_urls: dict[str, str]) -> dict[str, str]:
    broker = default_worker_env["CELERY_BROKER_URL"]
    return {"DATABASE_URL": database_urls["there"], "OPS_BROKER_URL": broker, "ENCRYPTION_KEY": new_key(),
            "OPS_USER": "admin"}  # fmt: skip


def ops(worker: Any, *argv: str) -> str:
    code, output = worker.container.exec_run(["ops", *argv])
    assert code == 0, output.decode()
    return str(output.decode())


def test_a_deployment_runs_in_the_image_and_one_that_waited_when_it_was_killed_runs_later(
    celery_setup: Any, database_urls: dict[str, str]
) -> None:
    worker = celery_setup.worker
    worker.assert_log_exists("ready.")
    ops(worker, "app", "add", "web", "--", "sh", "-c", "echo deploying $OPS_VERSION")
    ops(worker, "infra", "add", "here")
    assert "deploying v1" in ops(worker, "deploy", "web", "v1", "--to", "here")
    ops(worker, "pause")
    ops(worker, "deploy", "web", "v2", "--to", "here", "--detach")
    worker.kill()
    assert worker.container.status == "exited"
    worker.restart()
    with psycopg.connect(database_urls["here"], autocommit=True) as database:

        def statuses() -> list[str]:
            return [status for (status,) in database.execute("SELECT status FROM deployments ORDER BY id").fetchall()]

        assert statuses() == ["success", "pending"]
        ops(worker, "resume")
        until(lambda: statuses() == ["success", "success"], "the second one has run")
