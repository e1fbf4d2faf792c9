"""Many deployments that want the same hosts, while workers are stopped and the database hangs up.

``CHAOS_HOSTS=20 CHAOS_REQUESTS=50 pytest tests/e2e/test_host_contention.py`` takes some minutes. Nothing of the
platform makes them wait for each other but what is on the hosts: they belong to five infrastructures, whose deployments
share one lock file per host. What happened is read from the files that the runs left there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.estate import Estate, estate_of
from tests.e2e.platform import Deployed, Platform
from tests.e2e.process import until
from tests.tasks.hosted import needs_sshd

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900), needs_sshd]

HOSTS, REQUESTS = int(os.environ.get("CHAOS_HOSTS", "8")), int(os.environ.get("CHAOS_REQUESTS", "16"))
#: One has all hosts, the others a part each.
GROUPS = 5
#: So many requests are for all hosts.
WIDE = 2
ENDS = {"success", "failed", "error: interrupted", "error: lost"}


@pytest.fixture
def estate(platform: Platform) -> Iterator[Estate]:
    yield from estate_of(platform, HOSTS)


def ask(estate: Estate) -> list[Deployed]:
    """Most for a few of the hosts, two for all of them."""
    size = HOSTS // (GROUPS - 1)
    groups = [
        estate.add_infrastructure(f"group{n}", estate.servers[size * n : size * (n + 1)]) for n in range(GROUPS - 1)
    ]
    app = estate.add_application("shop", {"strategy": "rolling", "batch": 2, "max_failures": HOSTS})
    estate.configure(rollout={"strategy": "rolling", "batch": "50%", "max_failures": HOSTS})
    asked = []
    for number in range(REQUESTS):
        if number % (REQUESTS // WIDE) == 0:
            asked.append(estate.deploy(str(number)))
        else:
            asked.append(estate.deploy(str(number), app=app, place=groups[number % len(groups)]))
    return asked


def ended(platform: Platform) -> int:
    rows = platform.rows("SELECT count(*) AS n FROM deployments WHERE status NOT IN ('pending', 'running')")
    return int(rows[0]["n"])


def hang_up(platform: Platform) -> None:
    """The database ends every connection of the platform."""
    cut = platform.rows(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = 'ops_app'""",
        role="postgres",
    )
    assert cut


def check_told(estate: Estate, asked: Deployed, status: str) -> None:
    """What is said of each host is what the host itself tells."""
    for server in estate.servers:
        said = estate.known(asked).get(server.name)
        words = [line[0] for line in estate.log(server) if line[1] == str(asked.id)]
        assert words.count("begin") <= 1, f"{asked} ran twice on {server.name}"
        if said is None or said[0] in ("pending", "skipped", "unreachable"):
            assert not words, f"{server.name} is {said} of {asked}, and it ran there"
        if status == "success" or (said is not None and said[0] == "healthy"):
            assert said is None or (said[0], words[-1]) == ("healthy", "end")


def test_no_host_ever_has_two_deployments_at_once(platform: Platform, estate: Estate) -> None:
    platform.lease(5)
    workers = platform.workers("w1", "w2", "w3", "w4", processes=2)
    asked = ask(estate)
    for number, worker in enumerate(workers[:3]):
        until(lambda number=number: ended(platform) >= (number + 1) * REQUESTS // 6, "some have ended", 300)
        holds = f"{worker.name}@"
        until(lambda holds=holds: platform.rows(
            "SELECT 1 FROM jobs WHERE state = 'running' AND starts_with(worker, %s) AND began_at IS NOT NULL", holds
        ), f"{worker.name} has a deployment", 120)  # fmt: skip
        with worker.frozen():
            held = [row["id"] for row in platform.rows(
                "SELECT id FROM jobs WHERE state = 'running' AND starts_with(worker, %s)", holds
            )]  # fmt: skip
            until(lambda held=held: not platform.rows(
                "SELECT 1 FROM jobs WHERE id = ANY(%s) AND state = 'running'", held
            ), "what it had has ended without it")  # fmt: skip
        hang_up(platform)
    ends = {each: platform.wait_ended(each, 600) for each in asked}
    assert set(ends.values()) <= ENDS
    assert list(ends.values()).count("success") >= REQUESTS // 2
    estate.check_none_overlapped()
    for each, status in ends.items():
        check_told(estate, each, status)
