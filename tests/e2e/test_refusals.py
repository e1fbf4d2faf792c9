"""Servers that answer and refuse: out of memory, out of disk, read-only. What runs goes on, and its end is true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.platform import Platform
from tests.e2e.process import is_alive, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@contextmanager
def no_room(platform: Platform, table: str) -> Iterator[None]:
    """The disk is full for whoever writes to this table."""
    platform.rows(
        """CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"""
    )
    platform.rows(f"CREATE TRIGGER no_room BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION no_room()")
    try:
        yield
    finally:
        platform.rows(f"DROP TRIGGER no_room ON {table}")


@contextmanager
def read_only(platform: Platform) -> Iterator[None]:
    def each(setting: str) -> None:
        platform.rows("SET default_transaction_read_only = off", role="postgres")
        platform.rows(setting, role="postgres")
        platform.rows("SELECT pg_reload_conf()", role="postgres")

    each("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        yield
    finally:
        each("ALTER SYSTEM RESET default_transaction_read_only")


@pytest.mark.parametrize(
    ("refuse", "relent"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    ],
    ids=["a replica after a failover", "no memory left"],
)
def test_a_broker_that_refuses_ends_no_worker_and_nothing_that_runs(
    breakable: Platform, refuse: tuple[str, ...], relent: tuple[str, ...]
) -> None:
    worker = breakable.worker()
    gate = breakable.folder / "gate"
    runs = breakable.deploy("--gate", str(gate))
    pid = breakable.wait_begun(runs)
    breakable.broker.execute_command(*refuse)
    try:
        breakable.broker.client_kill_filter(_type="normal")  # a failover cuts every connection, too
        until(lambda: worker.text.count("Trying to re-establish") > 1 or not worker.is_alive, "it has been refused")
        meanwhile = breakable.deploy("--seconds", "0.1", infra="meanwhile")
        assert worker.is_alive
        assert is_alive(pid)
        status = breakable.start("status", "-c", "from worker.cli import main; main()", "status")
        assert status.wait() == 3
        gate.touch()
        assert breakable.wait_ended(runs) == "success"
    finally:
        breakable.broker.execute_command(*relent)
    assert breakable.wait_ended(meanwhile) == "success"
    assert "Traceback" not in worker.text
    breakable.check_effects(runs, meanwhile)


def test_a_database_that_is_read_only_for_a_while_loses_no_outcome(breakable: Platform) -> None:
    """The worker knows how it ended, and nobody else will ever: it goes on telling until it is heard."""
    worker = breakable.worker()
    gate = breakable.folder / "gate"
    runs = breakable.deploy("--gate", str(gate))
    pid = breakable.wait_begun(runs)
    with read_only(breakable):
        gate.touch()
        until(lambda: not is_alive(pid), "the effect has ended")
        until(lambda: "ReadOnlySqlTransaction" in worker.text, "the worker has been refused")
        assert breakable.deployment(runs.id)["status"] == "running"
    assert breakable.wait_ended(runs) == "success"
    assert breakable.story(runs.job) == ["enqueued", "started", "succeeded"]
    breakable.check_effects(runs)


def test_a_full_disk_loses_output_and_no_outcome(platform: Platform) -> None:
    """The output waits for room as long as the outcome can still be told; then the outcome says what is missing."""
    platform.worker()
    good = platform.deploy(app="good", command=["/bin/sh", "-c", "echo one"], infra="good", timeout_seconds=2)
    bad = platform.deploy(app="bad", command=["/bin/sh", "-c", "echo one; exit 3"], infra="bad", timeout_seconds=2)
    with no_room(platform, "deployment_logs"):
        assert platform.wait_ended(good) == "success"
        assert platform.wait_ended(bad) == "failed"
    said = "a part of the output could not be written (DiskFull)"
    assert platform.job(good.job)["result"] == {"message": said}
    assert platform.deployment(bad.id)["error_message"] == f"command exited with 3; {said}"
    assert platform.log_of(bad.id) == ""
    assert platform.story(bad.job) == ["enqueued", "started", "failed"]
    shown = platform.start("show", "-c", "from worker.cli import main; main()", "show", str(good.id))
    assert shown.wait() == 0
    assert said in shown.text


def test_a_full_disk_under_the_audit_trail_only_delays(platform: Platform) -> None:
    """No transition goes unrecorded: what cannot be recorded waits, and goes on by itself."""
    worker = platform.worker()
    gate = platform.folder / "gate"
    runs = platform.deploy("--gate", str(gate))
    waits = platform.deploy("--gate", str(gate))
    pid = platform.wait_begun(runs)
    with no_room(platform, "audit_logs"):
        gate.touch()
        until(lambda: not is_alive(pid), "the effect has ended")
        before = len(platform.rows("SELECT 1 FROM processes"))
        platform.rows("DELETE FROM processes")
        until(lambda: platform.rows("SELECT 1 FROM processes"), "the worker still says that it lives")
        assert before == 1
        assert platform.deployment(runs.id)["status"] == "running"
    assert platform.wait_ended(runs) == "success"
    assert platform.wait_ended(waits) == "success"
    assert platform.story(runs.job) == ["enqueued", "started", "succeeded"]
    assert worker.is_alive
    platform.check_effects(runs, waits)
