"""Checks by a real beat and a real worker: a target that goes and comes back, and a worker that is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from db.connection import get_db_session
from db.repositories import CheckRepository
from db.service import DatabaseService
from tests.e2e.platform import Platform
from tests.e2e.process import until
from tests.tasks.probes.conftest import Server, answering, serving

pytestmark = pytest.mark.e2e
ALLOW = {"OPS_PROBE_ALLOW": "127.0.0.1/32"}
OK, BROKEN = answering(b"ok"), answering(b"", "500 Broken")


@pytest.fixture
def target() -> Iterator[Server]:
    with serving(OK) as server:
        yield server


def watch(name: str, kind: str, **config: object) -> int:
    with get_db_session() as session:
        service = DatabaseService(session)
        owner = service.list_users().items
        user = owner[0] if owner else service.create_user_with_audit("ann", "ann@example.org")
        return service.add_check(
            name, kind, user.id, config=config, interval_seconds=5, retry_seconds=1, failure_threshold=2,
            timeout_seconds=2,
        ).id  # fmt: skip


def is_in(platform: Platform, check_id: int, state: str) -> None:
    def there() -> bool:
        return platform.rows("SELECT state FROM check_states WHERE check_id = %s", check_id)[0]["state"] == state

    until(there, f"check {check_id} is {state}", 60)


def test_a_target_goes_and_comes_back_and_it_is_seen_once_each(platform: Platform, target: Server) -> None:
    site = watch("site", "http", url=target.url)
    inside = watch("inside", "http", url="http://169.254.169.254/")
    platform.worker(queues="checks,control", **ALLOW)
    platform.beat()
    is_in(platform, site, "up")
    target.speak = BROKEN
    is_in(platform, site, "down")
    target.speak = OK
    is_in(platform, site, "up")
    states = platform.rows("SELECT state FROM check_intervals WHERE check_id = %s ORDER BY id", site)
    assert [row["state"] for row in states] == ["unknown", "up", "down", "up"]
    (blocked,) = platform.rows("SELECT state, last_status, last_message FROM check_states WHERE check_id = %s", inside)
    assert (blocked["state"], blocked["last_status"]) == ("unknown", "unknown")
    assert blocked["last_message"].startswith("not asked: it is a metadata service's")
    # One entry per batch, and every result is in one.
    (told,) = platform.rows(
        "SELECT sum(coalesce((details ->> 'up')::int, 0) + coalesce((details ->> 'down')::int, 0)"
        " + coalesce((details ->> 'unknown')::int, 0)) AS runs FROM audit_logs WHERE action = 'check.batch'"
    )
    (seen,) = platform.rows("SELECT count(*) AS runs FROM check_results WHERE status <> 'missed'")
    assert abs(told["runs"] - seen["runs"]) <= 2  # one may have been written between the two looks


def test_what_a_killed_worker_was_running_is_run_again_and_is_never_down(platform: Platform, target: Server) -> None:
    site = watch("site", "http", url=target.url)
    first = platform.worker("w1", queues="checks,control", processes=1, **ALLOW)
    platform.beat()
    is_in(platform, site, "up")

    def silent(sock: object) -> None:
        sock.recv(1)  # type: ignore[attr-defined]
        first.kill()
        sock.recv(65536)  # type: ignore[attr-defined]

    target.speak = silent
    until(lambda: not first.is_alive, "the worker was killed by what it was asking")
    target.speak = OK
    platform.worker("w2", queues="checks,control", processes=1, **ALLOW)
    # Nobody waits for the lost run's lease here: it is given up now.
    platform.rows("UPDATE check_states SET next_run_at = now() WHERE batch_id IS NOT NULL RETURNING 1")

    def lost_and_found() -> bool:
        lost = platform.rows("SELECT 1 FROM audit_logs WHERE action = 'check.batch_lost'")
        ran = platform.rows("SELECT 1 FROM check_states WHERE batch_id IS NULL AND last_status = 'up'")
        return bool(lost and ran)

    until(lost_and_found, "the lost run is told of and made again", 60)
    assert not platform.rows("SELECT 1 FROM check_intervals WHERE state = 'down'")
    assert not platform.rows("SELECT 1 FROM check_results WHERE status = 'down'")


def test_a_heartbeat_that_reports_is_up(platform: Platform) -> None:
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("ann", "ann@example.org")
        backup = service.add_check("backup", "heartbeat", user.id, config={"period_seconds": 60})
        token = backup.ping_token
    platform.worker(queues="checks,control")
    platform.beat()
    with get_db_session() as session:
        assert token is not None
        assert CheckRepository(session).beat(token) == backup.id
    is_in(platform, backup.id, "up")
    with get_db_session() as session:
        DatabaseService(session).ping_heartbeat("backup", "fail")
    is_in(platform, backup.id, "down")
