"""Who acts on the command line, what that is worth, and what stands in the trail beside the claimed name."""

from __future__ import annotations

import os
import pwd
import socket

import pytest

from db import connection
from tests.worker.cli.conftest import Ops


@pytest.fixture(autouse=True)
def _nobody_is_known_yet():
    connection.client_name.cache_clear()
    yield
    connection.client_name.cache_clear()


def test_the_database_user_the_os_user_and_the_host_stand_beside_the_claimed_name(ready: Ops, monkeypatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.setenv("USER", "somebody-else")
    assert ready("app", "add", "shop", "--", "/bin/true", user="ann").code == 0
    entry = ready("--json", "audit", "search", "--resource", "application", "--limit", "1").json["items"][0]
    assert (entry["actor"], entry["actor_type"], entry["db_user"]) == ("ann", "user", "ops_app")
    assert entry["client"] == f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"


def test_whoever_is_disabled_neither_acts_nor_looks(ready: Ops) -> None:
    assert ready("user", "add", "ben", "ben@example.org").code == 0
    assert ready("app", "list", user="ben").code == 0
    assert ready("user", "disable", "ben").code == 0
    for command in (("app", "list"), ("audit", "search"), ("deploy", "web", "v1", "--to", "local", "--detach")):
        done = ready(*command, user="ben")
        assert (done.code, done.error.splitlines()[0]) == (5, "ben is disabled")


def test_a_role_is_changed_by_an_admin_only_and_counts_at_once(ready: Ops) -> None:
    assert ready("user", "add", "ben", "ben@example.org", "--role", "viewer").code == 0
    assert ready("user", "role", "ben", "admin", user="ben").code == 5
    assert ready("deploy", "web", "v1", "--to", "local", "--detach", user="ben").code == 5
    assert ready("user", "role", "ben", "operator").code == 0
    assert ready("deploy", "web", "v1", "--to", "local", "--detach", user="ben").code == 0
    assert ready("user", "role", "ben", "emperor").error.startswith("'emperor' is no role; roles are: viewer")


def test_the_names_of_others_secrets_are_for_admins(ready: Ops) -> None:
    assert ready("user", "add", "ben", "ben@example.org").code == 0
    assert ready("secret", "set", "aws/token", user="ann", stdin="value").code == 0
    assert ready("secret", "list", "--user", "ann", user="ben").code == 5
    assert ready("secret", "list", user="ben").code == 0
    assert [item["name"] for item in ready("--json", "secret", "list", "--user", "ann").json["items"]] == ["aws/token"]
