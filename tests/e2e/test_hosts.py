"""Deployments to real ssh servers by real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.estate import Estate, estate
from tests.e2e.platform import Platform
from tests.e2e.process import until
from tests.tasks.conftest import gone
from tests.tasks.hosted import needs_sshd

__all__ = ["estate"]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), needs_sshd]


def test_a_version_is_put_on_all_hosts_and_each_is_told(platform: Platform, estate: Estate) -> None:
    platform.worker("w1", processes=1)
    deployed = estate.deploy("v1/x")
    assert platform.wait_ended(deployed) == "success"
    assert estate.statuses(deployed) == ["healthy"] * 3
    assert all(str(each.current()).startswith(f"v1~x-{deployed.id}-") for each in estate.servers)
    assert "BEGIN OPENSSH" not in str(platform.rows("SELECT content FROM deployment_logs"))


def test_content_that_is_pinned_is_brought_and_other_content_reaches_no_host(
    platform: Platform, estate: Estate, tmp_path: Path
) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "page").write_text("one")
    estate.configure(artifact=f"{tmp_path}/{{version}}")
    platform.worker("w1", processes=1)
    assert platform.wait_ended(estate.deploy("v1")) == "success"
    assert [(each.app() / "current" / "page").read_text() for each in estate.servers] == ["one"] * 3
    before = [each.current() for each in estate.servers]
    other = estate.deploy("v1", digest="sha256:" + "0" * 64)
    assert platform.wait_ended(other) == "failed"
    assert "the content of v1 is another by now" in str(platform.rows("SELECT error_message FROM deployments"))
    assert [each.current() for each in estate.servers] == before


def test_a_cancel_ends_what_runs_on_the_host_and_begins_no_other(platform: Platform, estate: Estate) -> None:
    prepare = ["sh", "-c", "echo $$ >../../pid; sleep 3600"]
    estate.configure(steps={"prepare": [prepare], "timeout_seconds": 3600})
    platform.worker("w1", processes=1)
    deployed = estate.deploy("1")
    first = estate.servers[0]
    pid = until(lambda: (path := first.app() / "pid").exists() and path.read_text().strip(), "it runs on the host")
    platform.cancel(deployed)
    assert platform.wait_ended(deployed) == "cancelled"
    gone(int(pid))
    assert estate.known(deployed)["web1"][:2] == ("skipped", "stopped before it was switched")
    assert estate.statuses(deployed) == ["skipped"] * 3
    assert estate.running() == ["None"] * 3
