"""`ops infra host`: machines are added, listed, looked at, pinned and removed; and what was done to them is told."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from db.connection import get_db_session
from db.repositories import DeploymentHostRepository
from tests.worker.cli.conftest import Ops

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhw7lPwqHpQ3XGy0cNqQ4jpQ1xVtSkHnLxqVbq3oV2G"


def test_hosts_are_added_behind_the_others_listed_and_removed(ready: Ops, tmp_path: Path) -> None:
    (tmp_path / "web1.pub").write_text(f"{KEY} root@web1\n")
    added = ready("infra", "host", "add", "local", "web1", "10.0.0.11", "--host-key", str(tmp_path / "web1.pub"))
    assert (added.code, "scan" in added.stdout) == (0, False)
    added = ready("infra", "host", "add", "local", "web2", "10.0.0.12", "--port", "2222")
    assert "ops infra host scan local web2" in added.stdout, "a host without a pinned key gets nothing"
    listed = ready("--json", "infra", "host", "list", "local").json["items"]
    assert [(each["position"], each["name"], each["port"], each["pinned"]) for each in listed] == [
        (0, "web1", 22, True),
        (1, "web2", 2222, False),
    ]
    assert ready("infra", "host", "rm", "local", "web1").code == 0
    assert [each["name"] for each in ready("--json", "infra", "host", "list", "local").json["items"]] == ["web2"]
    assert ready("infra", "host", "rm", "local", "web1").code == 6


def test_a_host_that_moved_is_to_be_looked_at_before_anything_is_deployed_to_it(ready: Ops, tmp_path: Path) -> None:
    (tmp_path / "web1.pub").write_text(f"{KEY} root@web1\n")
    ready("infra", "host", "add", "local", "web1", "10.0.0.11", "--host-key", str(tmp_path / "web1.pub"))
    assert ready("infra", "host", "edit", "local", "web1", "--rename", "web").stdout == "host web is changed\n"
    moved = ready("infra", "host", "edit", "local", "web", "--port", "2222")
    assert "next: ops infra host scan local web " in moved.stdout, "its key is pinned no more"
    again = ready("infra", "host", "add", "local", "web", "10.0.0.12")
    assert (again.code, again.error) == (5, "a host with this name exists already")


def test_what_is_no_host_is_refused_in_one_line(ready: Ops, tmp_path: Path) -> None:
    (tmp_path / "no.pub").write_text("no key\n")
    host = ("infra", "host", "add", "local")
    for words in (
        ("-oProxyCommand=x", "10.0.0.1"),
        ("web1", "-oProxyCommand=x"),
        ("web1", "a b"),
        ("web1", "10.0.0.1", "--port", "0"),
        ("web1", "10.0.0.1", "--host-key", str(tmp_path / "no.pub")),
        ("web1", "10.0.0.1", "--host-key", str(tmp_path / "missing.pub")),
    ):
        refused = ready(*host, *words)
        assert (refused.code, "Traceback" in refused.stderr) == (2, False), words
    assert ready("infra", "host", "list", "nowhere").code == 6
    assert ready("--json", "infra", "host", "list", "local").json["items"] == []


def test_a_host_that_shows_no_key_is_told_and_nothing_is_pinned(ready: Ops) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        port = str(closed.getsockname()[1])
        ready("infra", "host", "add", "local", "web1", "127.0.0.1", "--port", port)
        refused = ready("infra", "host", "scan", "local", "web1", "--trust")
    assert (refused.code, "it showed no key" in refused.error) == (3, True)
    assert ready("--json", "infra", "host", "show", "local", "web1").json["pinned"] is False


def test_the_story_of_a_deployment_tells_of_its_hosts(ready: Ops, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    asked = ready("--json", "deploy", "web", "1", "--to", "local", "--detach").json
    with get_db_session() as session:
        rows = DeploymentHostRepository(session)
        rows.add([{"deployment_id": asked["id"], "name": "web1", "position": 0, "attempt": 1}])
    sql("UPDATE deployment_hosts SET status = 'failed', message = 'it said no', finished_at = now()")
    told = ready("show", str(asked["id"]))
    assert "it said no" in told.stdout
    assert [each["host"] for each in ready("--json", "show", str(asked["id"])).json["hosts"]] == ["web1"]
