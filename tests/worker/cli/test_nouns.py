"""What people register, look at, change and remove."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.worker.cli.conftest import Ops


def test_db_init_makes_the_acting_user_the_first_admin(database, ops: Ops) -> None:
    done = ops("--json", "db", "init", user="ann")
    assert done.json["admin"] == "ann"
    users = ops("user", "list", "--json", user="ann").json["items"]
    assert [(user["username"], user["role"]) for user in users] == [("ann", "admin")]


def test_db_init_with_samples_makes_what_the_documentation_uses(database, ops: Ops) -> None:
    assert ops("db", "init", "--sample").code == 0
    assert ops("db", "init", "--sample").code == 0
    names = [user["username"] for user in ops("--json", "user", "list").json["items"]]
    assert "admin" in names
    assert [app["id"] for app in ops("--json", "app", "list").json["items"]] == [1]
    assert [infra["id"] for infra in ops("--json", "infra", "list").json["items"]] == [1]


def test_an_application_is_registered_shown_changed_and_removed(ready: Ops) -> None:
    added = ready(
        "--json", "app", "add", "shop", "--health-url", "http://127.0.0.1:8000/healthz", "--env", "LEVEL=debug=1",
        "--secret", "TOKEN=github/token", "--promote", "switch 'the traffic'", "--", "./deploy.sh", "--fast", "a b",
    )  # fmt: skip
    assert added.json["command"] == "./deploy.sh --fast 'a b'"
    assert added.json["configuration"] == {
        "environment": {"LEVEL": "debug=1"},
        "secrets": {"TOKEN": "github/token"},
        "promote": ["switch", "the traffic"],
    }
    edited = ready("--json", "app", "edit", "shop", "--env", "MORE=1", "--health-attempts", "3", "--promote", "")
    assert edited.json["configuration"]["environment"] == {"LEVEL": "debug=1", "MORE": "1"}
    assert edited.json["configuration"]["health"]["attempts"] == 3
    assert edited.json["configuration"]["promote"] is None
    assert edited.json["command"] == "./deploy.sh --fast 'a b'"
    assert ready("app", "rm", "shop").code == 0
    assert ready("app", "show", "shop").code == 6


def test_a_relative_command_runs_where_it_was_named(ready: Ops, tmp_path: Path, monkeypatch) -> None:
    """A worker runs elsewhere: there it would not be found."""
    monkeypatch.chdir(tmp_path)
    assert ready("--json", "app", "add", "shop", "--", "./deploy.sh").json["working_directory"] == str(tmp_path)
    elsewhere = ready("--json", "app", "add", "other", "--dir", "/srv", "--", "bin/deploy").json
    assert elsewhere["working_directory"] == "/srv"
    assert ready("--json", "app", "edit", "other", "--", "./deploy.sh").json["working_directory"] == "/srv"
    assert ready("--json", "app", "edit", "web", "--env", "A=1").json["working_directory"] is None
    assert ready("--json", "app", "edit", "web", "--", "./deploy.sh").json["working_directory"] == str(tmp_path)


def test_an_infrastructure_is_registered_shown_changed_and_removed(ready: Ops) -> None:
    assert ready("infra", "add", "prod", "--environment", "production", "--env", "ZONE=a").code == 0
    assert ready("--json", "infra", "edit", "prod", "--env", "ZONE=b").json["settings"] == {
        "environment": {"ZONE": "b"}
    }
    assert ready("--json", "infra", "show", "prod").json["environment"] == "production"
    assert ready("infra", "rm", "prod").code == 0
    assert ready("infra", "show", "prod").code == 6


def test_what_was_deployed_cannot_be_removed(ready: Ops) -> None:
    assert ready("deploy", "web", "v1", "--to", "local", "--detach").code == 0
    for noun, name in (("app", "web"), ("infra", "local")):
        done = ready(noun, "rm", name)
        assert done.code == 5
        assert "still used" in done.error


def test_a_secret_comes_from_stdin_and_is_never_shown(ready: Ops) -> None:
    assert ready("secret", "set", "github/token", stdin="s3cr3t-of-ann\n").code == 0
    listed = ready("secret", "list")
    assert "github/token" in listed.stdout
    assert "s3cr3t-of-ann" not in listed.stdout + listed.stderr
    assert ready("secret", "rm", "github/token").code == 0
    assert ready("secret", "rm", "github/token").code == 6


def test_a_user_is_registered_gets_a_password_and_is_disabled(ready: Ops) -> None:
    assert ready("user", "add", "bob", "bob@example.org").code == 0
    assert ready("user", "passwd", "bob", stdin="a long password\n").code == 0
    assert ready("user", "disable", "bob").code == 0
    refused = ready("app", "add", "x", "--", "true", user="bob")
    assert refused.code == 5
    assert "disabled" in refused.error
    assert ready("user", "disable", "bob", "--undo").code == 0
    assert ready("app", "add", "x", "--", "true", user="bob").code == 0


def test_everybody_acts_under_his_own_name_in_the_audit_trail(ready: Ops) -> None:
    ready("user", "add", "bob", "bob@example.org")
    ready("app", "add", "bobs", "--", "true", user="bob")
    found = ready("--json", "audit", "search", "--actor", "bob", "--action", "application.*").json["items"]
    assert [(entry["action"], entry["actor_type"], entry["details"]["via"]) for entry in found] == [
        ("application.created", "user", "ops app add")
    ]


def test_lists_come_in_pages(ready: Ops) -> None:
    for number in range(3):
        ready("app", "add", f"a{number}", "--", "true")
    first = ready("--json", "app", "list", "--limit", "2").json
    second = ready("--json", "app", "list", "--limit", "2", "--before", first["next"]).json
    assert [app["name"] for app in first["items"] + second["items"]] == ["a2", "a1", "a0", "web"]
    assert second["next"] is None


def test_json_means_the_same_wherever_it_stands(ready: Ops) -> None:
    assert ready("--json", "app", "list").stdout == ready("app", "list", "--json").stdout
    error = ready("app", "show", "nothing", "--json")
    assert json.loads(error.stderr) == {
        "error": "there is no application 'nothing'",
        "hint": "ops app list",
        "exit_code": 6,
    }


def test_names_of_strangers_reach_no_terminal_as_markup_or_control_sequences(ready: Ops, sql) -> None:
    sql("UPDATE applications SET description = E'[bold]x[/bold] \\x1b[2J\\x1b]0;title\\x07end'")
    shown = ready("app", "show", "web").stdout
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_an_audit_search_finds_a_field_set_to_a_value(ready: Ops) -> None:
    ready("deploy", "web", "v1", "--to", "local", "--detach")
    ready("deployment", "cancel", "1")
    found = ready(
        "--json", "audit", "search", "--resource", "deployment:1", "--changed", "status", "--to", "cancelled",
        "--since", "1h",
    ).json["items"]  # fmt: skip
    assert [entry["changes"]["status"] for entry in found] == [["pending", "cancelled"]]


def test_completion_and_help_of_every_command_work(ops: Ops) -> None:
    assert "deploy" in ops("--help").stdout
    nouns = ("app", "infra", "secret", "deployment", "job", "audit", "user", "db", "encryption-key")
    for noun in nouns:
        assert ops(noun, "--help").code == 0
    assert "Example" in ops("deploy", "--help").stdout
    assert ops("--version").stdout.strip()


def test_help_loads_nothing_that_it_does_not_need():
    program = """
import sys
from worker.cli import main
sys.argv = ["ops", "--help"]
try:
    main()
finally:
    print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"sqlalchemy", "psycopg", "celery", "pydantic", "cryptography", "rich", "asyncssh", "aiohttp", "docker"}
    assert heavy & set(done.stdout.splitlines()[-1].split()) == set()
