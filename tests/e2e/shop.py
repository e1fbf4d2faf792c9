"""An application with durable tasks of its own, as a README would show it; below, what the tests need beside that."""

from __future__ import annotations

import os
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from celery import Celery

from worker import publish
from worker.base import OpsTask

app = Celery("shop", broker=os.environ["OPS_BROKER_URL"])
app.conf.task_default_queue = "shop"
publish.install(app)
#: Not for every other app of a process: the tests import this module anew for each broker.
task = partial(app.task, shared=False)


@task(base=OpsTask, durable=True, idempotent=True, max_attempts=3, timeout=60)
def ship(order: int) -> dict[str, int]:
    """Is run until it succeeds, three times at most, whatever dies."""
    return {"order": order}


# What the tests need ------------------------------------------------------------------------------------------------


def leave_evidence(job: Any, file: str, gate: str, seconds: float = 60.0) -> None:
    """As `effect.py` does: lines in a file, until the gate opens."""

    def say(word: str) -> None:
        line = f"{word} {job.id} {job.attempt} {job.fence} {os.getpid()} {time.monotonic():.4f}\n"
        os.write(handle, line.encode())

    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        say("begin")
        stop = time.monotonic() + seconds
        while time.monotonic() < stop and not os.path.exists(gate):  # noqa: PTH110
            time.sleep(0.05)
            say("alive")
        say("end")
    finally:
        os.close(handle)


@task(base=OpsTask, durable=True, bind=True, lease=4.0)
def charge(self: OpsTask, file: str, gate: str) -> int:
    """Must not happen twice."""
    leave_evidence(self.job, file, gate)
    return self.job.fence


@task(base=OpsTask, durable=True, bind=True, lease=4.0, idempotent=True, max_rescues=5)
def copy(self: OpsTask, file: str, gate: str) -> int:
    """May happen again."""
    leave_evidence(self.job, file, gate)
    return self.job.fence


@task(base=OpsTask, durable=True, bind=True, lease=4.0)
def tidy_up(self: OpsTask, file: str, gate: str, note: str) -> None:
    """Cleans up when it is interrupted, and does not let itself be swallowed."""
    try:
        leave_evidence(self.job, file, gate)
    except Exception:  # noqa: BLE001
        pass
    finally:
        with open(note, "w") as out:  # noqa: PTH123
            out.write(str(self.job.stop_reason))


@task(base=OpsTask, durable=True, bind=True, lease=4.0)
def deaf(self: OpsTask, file: str) -> None:
    """Hears nothing, and ends for nobody."""
    leave_evidence(self.job, file, "/")
    while True:
        try:
            time.sleep(1)
        except BaseException:  # noqa: BLE001
            continue


@task(base=OpsTask, durable=True, bind=True, idempotent=True, max_attempts=3, backoff=0.2)
def flaky(self: OpsTask, failures: int) -> int:
    """Fails so many times."""
    if self.request.retries < failures:
        raise ConnectionError(f"attempt {self.job.attempt}")
    return self.job.attempt


@task(base=OpsTask, durable=True, bind=True, idempotent=True, max_attempts=5)
def asks_again(self: OpsTask, times: int, countdown: float) -> int:
    """Asks to be tried again."""
    if self.request.retries < times:
        raise self.retry(exc=ValueError("not yet"), countdown=countdown)
    return self.request.retries


@task(base=OpsTask, durable=True)
def once(error: str) -> None:
    """Fails, and is not tried again."""
    raise ValueError(error)


@task(base=OpsTask, durable=True, bind=True)
def answer(self: OpsTask, kind: str) -> Any:
    """Returns all kinds of things."""
    return {
        "set": {1, 2},
        "nul": "a\0b",
        "half": "\ud800",
        "large": "x" * 300_000,
        "nan": float("nan"),
        "none": None,
        "fence": self.job.fence,
    }[kind]


@task(base=OpsTask, durable=True)
def leaves(code: int) -> None:
    """Ends the process, it thinks."""
    raise SystemExit(code)


@task
def plain(number: int) -> int:
    """An ordinary task beside the durable ones."""
    return number * 2


@task(acks_late=True)
def plain_and_late(file: str, gate: str) -> None:
    """An ordinary task whose message is acknowledged at its end."""
    leave_evidence(SimpleNamespace(id="plain", attempt=0, fence=0), file, gate)
