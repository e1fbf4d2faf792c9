"""What goes wrong ends in one line, the right exit code, and nothing half-written."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from db import migrate
from tests.conftest import settings_from
from tests.worker.cli.conftest import Ops
from worker import foreman

NUL = "v\x00"
BAD_VERSIONS = [
    "v\x01",
    "v\n1",
    "v\x1b[2J",
    "x" * 10_000,
    "-rf",
    "../../etc",
    "a/../b",
    "",
    " v1",
    "v1 ",
    "v\u202e1",
    "$(id)",
]


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_a_version_that_is_none_is_refused(ready: Ops, counts, version: str) -> None:
    before = counts()
    done = ready("deploy", "web", "--to", "local", "--detach", "--", version)
    assert done.code == 2
    assert done.error.startswith("version")
    assert len(done.error) < 300
    assert counts() == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["deploy", "nothing", "v1", "--to", "local"], 6, "there is no application 'nothing'"),
        (["deploy", "web", "v1", "--to", "nowhere"], 6, "there is no infrastructure 'nowhere'"),
        (["deploy", "web", "v1"], 2, "--to"),
        (["deployment", "show", "99"], 6, "there is no deployment 99"),
        (["deployment", "show", "x; rm -rf"], 2, "no deployment's number"),
        (["deployment", "show", "9" * 40], 2, "no deployment's number"),
        (["deployment", "list", "--status", "sideways"], 2, "is none of"),
        (["job", "show", "not-an-id"], 2, "no job's id"),
        (["job", "show", "00000000-0000-0000-0000-000000000000"], 6, "there is no job"),
        (["job", "list", "--state", "sideways"], 2, "is none of"),
        (["show", "what is this"], 2, "is no id"),
        (["show", "deployment:99"], 6, "there is no deployment 99"),
        (["show", "user:99999"], 6, "nothing is known"),
        (["app", "list", "--before", "9" * 30], 2, "should be less than or equal to"),
        (["job", "list", "--before", "9" * 30], 2, "should be less than or equal to"),
        (["audit", "search", "--before", "9" * 30], 2, "should be less than or equal to"),
        (["audit", "search", "--since", "999999d"], 2, "is no time"),
        (["audit", "search", "--since", "0001-01-01"], 2, "is no time"),
        (["audit", "search", "--task", ""], 2, "no job's id"),
        (["deploy", "web", "v1", "--to", "local", "--timeout", "-1"], 2, "--timeout"),
        (["up", "--port", "99999"], 2, "--port"),
        (["app", "edit", "web"], 2, "nothing to change is named"),
        (["infra", "edit", "local"], 2, "nothing to change is named"),
        (["app", "add", "x"], 2, "the command is missing; it comes last, after --"),
        (["user", "disable", "ann"], 5, "ann is the last active admin"),
        (["db", "upgrade", ""], 2, "no revision is named"),
        (["db", "downgrade", "--yes", ""], 2, "no revision is named"),
        (["db", "sql", ""], 2, "no revision is named"),
        (["db", "revision", "-m", " "], 2, "needs a message"),
        (["app", "add", "web", "--", "true"], 5, "exists already"),
        (["app", "add", "a b", "--", "true"], 2, "name"),
        (["app", "add", "x", "--env", "NOVALUE", "--", "true"], 2, "needs a value"),
        (["app", "add", "x", "--env", "OPS_VERSION=1", "--", "true"], 2, "platform's"),
        (["app", "add", "x", "--health-url", "ftp://x", "--", "true"], 2, "health_check_url"),
        (["app", "add", "x", "--dir", "relative", "--", "true"], 2, "working_directory"),
        (["app", "add", "x", "--promote", "'unclosed", "--", "true"], 2, "--promote"),
        (["app", "add", "x", "--shell", "--", "two", "words"], 2, "one word"),
        (["app", "add", "x"], 2, "command"),
        (["app", "edit", "nothing", "--env", "A=1"], 6, "there is no application"),
        (["infra", "add", "x", "--driver", "carrier-pigeon"], 2, "unknown driver"),
        (["infra", "add", "x", "--environment", "moon"], 2, "environment"),
        (["secret", "set", "noslash"], 2, "SERVICE/NAME"),
        (["secret", "set", "a/b"], 2, "no value"),
        (["secret", "list", "--user", "nobody"], 6, "there is no user"),
        (["user", "add", "x y", "a@b.c"], 2, "username"),
        (["user", "add", "carl", "no address"], 2, "email"),
        (["user", "add", "carl", "c@d.e", "--role", "king"], 2, "is no role"),
        (["audit", "search", "--since", "yesterday-ish"], 2, "--since"),
        (["audit", "search", "--task", "x"], 2, "no job's id"),
        (["nonsense"], 2, "nonsense"),
        (["app", "list", "--limit", "many"], 2, "limit"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(ready: Ops, counts, arguments, code, says) -> None:
    before = counts()
    done = ready(*arguments)
    assert (done.code, says in done.error) == (code, True), done
    assert counts() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["app", "add", "a b", "--", "true"], "a name is up to 63 letters"),
        (["app", "add", "x", "--env", "A B=1", "--", "true"], "a variable's name is up to 128"),
        (["app", "add", "x", "--secret", "A=b", "--", "true"], "SERVICE/NAME"),
        (["app", "edit", "web", "--set", 'rollout={"strategy": '], "--set rollout= is followed by what is no JSON"),
        (["app", "edit", "web", "--set", "rollout={strategy: all}"], "rollout: names and their values are needed"),
        (["app", "edit", "web", "--set", 'rollout={"batc": 2}'], "rollout.batc: unknown; known are: strategy, batch,"),
        (["infra", "add", "x", "--driver", "docker", "--set", 'volumes=["a'], "--set volumes= is followed by"),
        (["deploy", "web", "a b", "--to", "local"], "a version is up to 200"),
        (["user", "add", "bob", "nowhere"], "alice@example.com"),
    ],
)
def test_what_fits_is_said_in_words_and_not_as_a_pattern(ready: Ops, arguments, says) -> None:
    done = ready(*arguments)
    assert (done.code, says in done.error) == (2, True), done
    assert "pattern" not in done.error


@pytest.mark.parametrize("arguments", [["app", "show"], ["job", "list", "--state"], ["db", "upgrade"]])
def test_a_value_of_ten_thousand_characters_does_not_bury_what_is_said_about_it(ready: Ops, arguments) -> None:
    done = ready(*arguments, "x" * 10_000)
    assert done.code in (2, 6)
    assert len(done.error) < 1000


@pytest.mark.parametrize("arguments", [[], ["app"], ["encryption-key"]])
def test_a_noun_alone_shows_its_help_and_is_a_usage_error(ops: Ops, arguments) -> None:
    done = ops(*arguments)
    assert done.code == 2
    assert done.stderr.startswith(f"Usage: {' '.join(['ops', *arguments])} ")
    assert len(done.stderr.splitlines()) > 5
    assert ops(*arguments, "--json").stderr.count("\n") == 1


def test_who_is_no_user_is_told_so(ready: Ops, counts) -> None:
    before = counts()
    done = ready("deploy", "web", "v1", "--to", "local", user="mallory")
    assert done.code == 6
    assert "'mallory'" in done.error
    assert counts() == before


def test_a_viewer_may_look_and_not_touch(ready: Ops, counts) -> None:
    ready("user", "add", "vera", "vera@example.org", "--role", "viewer")
    ready("deploy", "web", "v1", "--to", "local", "--detach")
    before = counts()
    for arguments in (
        ["deploy", "web", "v2", "--to", "local"],
        ["deployment", "cancel", "1"],
        ["app", "add", "x", "--", "true"],
        ["infra", "add", "x"],
        ["user", "add", "x", "x@y.z"],
        ["secret", "rm", "a/b", "--user", "ann"],
    ):
        done = ready(*arguments, user="vera")
        assert done.code == 5, done
        assert "vera" in done.error
    assert ready("deployment", "list", user="vera").code == 0
    assert counts() == before


def test_a_deployment_that_has_ended_cannot_be_cancelled_again(ready: Ops) -> None:
    ready("deploy", "web", "v1", "--to", "local", "--detach")
    assert ready("deployment", "cancel", "1", "--reason", "typo").code == 0
    done = ready("deployment", "cancel", "1")
    assert done.code == 5
    assert "cancelled" in done.error


def test_without_a_database_everything_says_so(ops: Ops, tmp_path: Path) -> None:
    with settings_from({"DATABASE_URL": f"postgresql://ops_app@/ops?host={tmp_path}"}):
        for arguments in (["app", "list"], ["deploy", "a", "b", "--to", "c"], ["db", "upgrade"], ["audit", "search"]):
            done = ops(*arguments)
            assert done.code == 3, done
            assert done.error.startswith("the database does not answer")
        status = ops("status", "--json")
        assert status.code == 3
        assert status.json["database"]["answers"] is False


def test_a_stack_of_ones_own_that_does_not_run_is_to_be_started(ops: Ops, tmp_path: Path) -> None:
    (tmp_path / "env").write_text(f"DATABASE_URL=postgresql://ops_app@/ops?host={tmp_path}\n")
    with settings_from({"OPS_DATA_DIR": str(tmp_path), "DATABASE_URL": ""}):
        done = ops("app", "list")
        assert done.code == 3
        assert "  try: ops up --detach" in done.stderr
        assert "next: ops up --detach" in ops("status").stdout


def test_without_any_setting_the_first_line_says_what_to_do(ops: Ops) -> None:
    done = ops("app", "list")
    assert done.code == 2
    assert "DATABASE_URL is not set" in done.error
    assert "ops up" in done.error


def test_without_migrations_the_line_names_the_command(database, ops: Ops) -> None:
    migrate.downgrade("base")
    done = ops("app", "list")
    assert done.code == 3
    assert "ops db upgrade" in done.stderr


@pytest.mark.parametrize("arguments", [["db", "check"], ["db", "revision", "-m", "more"]])
def test_without_migrations_nothing_is_compared(database, ops: Ops, arguments: list[str]) -> None:
    migrate.downgrade("base")
    done = ops(*arguments)
    assert done.code == 3
    assert "ops db upgrade" in done.stderr


def test_without_a_broker_a_deployment_is_written_and_will_start_by_itself(ready: Ops, sql, tmp_path: Path) -> None:
    with settings_from({"OPS_BROKER_URL": f"redis+socket://{tmp_path}/nobody.sock"}):
        done = ready("deploy", "web", "v1", "--to", "local", "--detach")
    assert done.code == 0
    assert "broker is away" in done.stderr
    assert "start by itself" in done.stderr
    assert sql("SELECT state FROM jobs") == [("queued",)]


def test_with_a_wrong_key_a_secret_is_not_stored(ready: Ops, counts) -> None:
    before = counts()
    with settings_from({"ENCRYPTION_KEY": "not a key"}):
        done = ready("secret", "set", "a/b", stdin="value-of-the-secret")
    assert done.code == 2
    assert "ENCRYPTION_KEY" in done.error
    assert "value-of-the-secret" not in done.stderr + done.stdout
    assert counts() == before


def test_watching_ends_with_124_when_its_time_is_over(ready: Ops) -> None:
    done = ready("deploy", "web", "v1", "--to", "local", "--timeout", "0")
    assert done.code == 124
    assert "goes on without us" in done.stderr


def test_the_story_of_a_job_tells_what_it_is_and_what_came_of_it(ready: Ops, sql) -> None:
    ready("schedule", "add", "report", "--every", "1h", "--task", "shop.report", "--queue", "shop")
    ready("schedule", "run-now", "report")
    sql("UPDATE jobs SET result = '\"sent 3\"'")
    ((job,),) = sql("SELECT id::text FROM jobs")
    story = ready("show", job, "--json").json
    assert (story["task"], story["queue"], story["state"], story["result"]) == (
        "shop.report", "shop", "queued", "sent 3",
    )  # fmt: skip


def test_why_it_waits_is_said(ready: Ops) -> None:
    done = ready("deploy", "web", "v1", "--to", "local", "--timeout", "0")
    assert "no worker serves queue deployments" in done.stderr


def test_a_taken_port_is_refused_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Exception, match=f"port {port} is taken"):
            foreman.free_port(port)
    assert foreman.free_port(port) == port


def test_env_writes_fresh_secrets_once(ops: Ops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ops("env").code == 0
    path = tmp_path / ".env"
    assert path.stat().st_mode & 0o777 == 0o600
    values = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line and line[0] != "#")
    assert len(values["SECRET_KEY"]) >= 32
    assert values["ENCRYPTION_KEY"]
    before = path.read_text()
    done = ops("env")
    assert done.code == 5
    assert path.read_text() == before
