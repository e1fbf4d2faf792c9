"""kill -9 of the worker at each step of a rolling deployment: what was switched is known, and a retry converges."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.estate import Estate, estate
from tests.e2e.platform import Deployed, Platform
from tests.e2e.process import until
from tests.tasks.hosted import needs_sshd

__all__ = ["estate"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow, needs_sshd]

CANNOT_TELL = "; nobody can tell how far it went"
PREPARING = ("unknown", f"preparing, not switched{CANNOT_TELL}", None)
SWITCHING = ("unknown", f"switching{CANNOT_TELL}", None)


def release(deployed: Deployed, host: object) -> bool:
    return str(host).startswith(f"2-{deployed.id}-")


def kill(platform: Platform, deployed: Deployed) -> None:
    platform.processes[0].kill()
    assert platform.wait_ended(deployed) in ("error: interrupted", "error: lost")


def converge(platform: Platform, estate: Estate, deployed: Deployed, held: Path | None = None) -> None:
    """Another worker, and a retry of the hosts that are not healthy; nothing that was cut off takes effect later."""
    platform.worker("w2", processes=1)
    again = estate.retry(deployed, failed_hosts=True)
    if held is not None:
        held.unlink()
    assert platform.wait_ended(again) == "success"
    assert estate.statuses(deployed) == ["healthy"] * 3
    assert all(release(deployed, each.current()) for each in estate.servers)
    estate.check_none_overlapped()
    for server in estate.servers:
        assert not list(server.folder.glob("ops-upload-*")), "uploads of a killed attempt are removed"
        assert not list(server.app().glob("releases/.new-*"))


@pytest.fixture
def deployed_before(platform: Platform, estate: Estate, tmp_path: Path) -> Estate:
    """Version 1 runs everywhere."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "page").write_text(version * 300_000)
    steps = {"prepare": [["at", "prepare"]], "health": ["at", "health"]}
    estate.configure(artifact=f"{tmp_path}/{{version}}", steps=steps)
    platform.worker("w1", processes=1)
    assert platform.wait_ended(estate.deploy("1")) == "success"
    return estate


@pytest.mark.parametrize(
    ("where", "said", "runs"),
    [
        ("upload", PREPARING, "1"),
        ("prepare", PREPARING, "1"),
        ("before", SWITCHING, "1"),
        ("after", SWITCHING, "2"),
        ("command", "switched", "2"),
        ("health", "switched", "2"),
    ],
)
def test_a_worker_that_is_killed_at_a_step_leaves_what_is_known(
    platform: Platform, deployed_before: Estate, where: str, said: tuple[str, str, str | None] | str, runs: str
) -> None:
    estate = deployed_before
    second = estate.servers[1]
    held = estate.hold(second, where)
    deployed = estate.deploy("2")
    estate.wait_held(second, where)
    if said == "switched":
        until(lambda: estate.known(deployed)["web2"][0] == "switched", "it is stored that it was switched")
    kill(platform, deployed)
    known = estate.known(deployed)
    assert [known["web1"][0], known["web3"][0]] == ["healthy", "skipped"]
    assert known["web2"] == said if said != "switched" else known["web2"][0] == said
    assert release(deployed, known["web2"][2]) == (said == "switched")
    assert estate.running() == ["2", runs, "1"]
    converge(platform, estate, deployed, held)


def test_a_worker_that_is_killed_between_two_batches_leaves_what_is_known(
    platform: Platform, deployed_before: Estate
) -> None:
    estate = deployed_before
    estate.configure(rollout={"strategy": "rolling", "batch": 2, "pause_seconds": 3600})
    deployed = estate.deploy("2")
    until(lambda: estate.statuses(deployed)[:2] == ["healthy"] * 2, "the first batch is healthy")
    kill(platform, deployed)
    assert estate.statuses(deployed) == ["healthy", "healthy", "skipped"]
    assert estate.running() == ["2", "2", "1"]
    converge(platform, estate, deployed)


def test_a_worker_that_is_killed_on_the_way_back_leaves_what_is_known(
    platform: Platform, deployed_before: Estate
) -> None:
    estate = deployed_before
    second = estate.servers[1]
    estate.configure(rollout={"strategy": "rolling", "batch": 1, "on_failure": "rollback"})
    (second.app() / "fails").write_text("2")
    held = estate.hold(second)
    deployed = estate.deploy("2")
    estate.wait_held(second, "command")
    kill(platform, deployed)
    known = estate.known(deployed)
    assert known["web1"][0] == "healthy"
    assert known["web2"][:2] == ("unknown", f"command exited with 1; bringing it back{CANNOT_TELL}")
    assert known["web3"][0] == "skipped"
    assert estate.running() == ["2", "1", "1"]
    (second.app() / "fails").unlink()
    converge(platform, estate, deployed, held)
