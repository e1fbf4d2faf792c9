"""What a deployment would change is shown without doing it; the way back is one command."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from db.services import comparisons


@pytest.fixture
def ran(ready, sql):
    """Deploy on `local`, up to an outcome, without a worker."""

    def run(*words: str, status: str = "success") -> int:
        made = ready("deploy", *words, "--to", "local", "--detach", "--json")
        assert made.code == 0, made.stderr
        state = "succeeded" if status == "success" else "failed"
        outcome = "ok" if status == "success" else "failed"
        sql(
            "UPDATE jobs SET state = 'running', lease_until = now() + interval '1 h', lease_token = gen_random_uuid(), "
            "attempt = 1, started_at = now(), deadline_at = now() + interval '1 h', worker = 'w', worker_host = 'h', "
            f"holders = '{{x}}', fence = 1 WHERE id = '{made.json['job_id']}'"
        )
        sql(
            f"UPDATE jobs SET state = '{state}', outcome = '{outcome}', lease_until = NULL, lease_token = NULL, "
            f"finished_at = clock_timestamp(), error = {'NULL' if outcome == 'ok' else chr(39) + 'no' + chr(39)} "
            f"WHERE id = '{made.json['job_id']}'"
        )
        return int(made.json["id"])

    return run


def test_a_plan_says_what_would_change_and_writes_nothing(ready, ran, counts):
    first = ran("web", "v1")
    ready("app", "edit", "web", "--env", "LEVEL=hush-hush", "--secret", "TOKEN=aws/token", "--timeout", "60")
    before = counts()
    shown = ready("deploy", "web", "v2", "--to", "local", "--plan", "--json")
    assert shown.code == 0
    assert shown.json["runs"] == {"id": first, "version": "v1"}
    changes = {each["field"]: (each["before"], each["after"]) for each in shown.json["changes"]}
    assert changes == {
        "version": ("v1", "v2"),
        "configuration.environment.LEVEL": (None, comparisons.HIDDEN),
        "configuration.secrets.TOKEN": (None, "aws/token"),
        "configuration.timeout_seconds": (3600, 60),
    }
    people = ready("deploy", "web", "v2", "--to", "local", "--plan")
    assert "runs there: v1" in people.stdout
    assert "hush-hush" not in people.stdout + shown.stdout
    assert "nothing is written" in people.stdout
    assert counts() == before


def test_a_plan_of_what_runs_changes_nothing_and_the_first_changes_everything(ready, ran):
    first = ready("deploy", "web", "v1", "--to", "local", "--plan", "--json").json
    assert first["runs"] is None
    assert {each["field"]: each["after"] for each in first["changes"]} | {
        "command": ["/bin/true"],
        "version": "v1",
    } == {each["field"]: each["after"] for each in first["changes"]}
    ran("web", "v1")
    assert ready("deploy", "web", "v1", "--to", "local", "--plan", "--json").json["changes"] == []
    bad = ran("web", "v2", status="failed")
    plan = ready("deploy", "web", "v1", "--to", "local", "--plan")
    assert f"deployment {bad} is failed since" in plan.stdout


def test_a_commit_is_looked_up_when_it_is_asked_for(ready, tmp_path, sql):
    where = str(tmp_path / "repository")
    try:
        subprocess.run(["git", "init", "-q", "-b", "main", where], check=True)
    except FileNotFoundError:
        pytest.skip("needs Debian's git")
    git = ["git", "-C", where, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert ready("app", "edit", "web", "--artifact", f"git:{where}").code == 0
    made = ready("deploy", "web", "main", "--to", "local", "--detach", "--json")
    assert sql(f"SELECT release_digest FROM deployments WHERE id = {made.json['id']}") == [(f"git:{commit}",)]
    plan = ready("deploy", "web", "gone", "--to", "local", "--plan", "--json")
    assert (plan.code, plan.json["remark"]) == (0, "the repository has no tag or branch gone")


def test_the_way_back_is_one_command(ready, ran, counts):
    none = ready("rollback", "web", "--to", "local", "--detach")
    assert (none.code, none.error) == (6, "nothing was ever deployed there")
    ran("web", "v1")
    second = ran("web", "v2")
    back = ready("rollback", "web", "--to", "local", "--detach", "--json")
    assert (back.code, back.json["version"], back.json["replaces"]) == (0, "v1", second)
    again = ready("rollback", "web", "--to", "local", "--detach")
    assert again.code == 5
    assert "is pending there" in again.error
    shown = ready("deployment", "show", str(back.json["id"]), "--json").json
    assert (shown["replaces"], shown["status"]) == (second, "pending")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["deploy", "web", "v1", "--to", "local", "--digest", "md5:x"], 2),
        (["deploy", "web", "v1", "--to", "local", "--digest", "sha256:" + "a" * 64], 2),
        (["deploy", "web", "--plan", "--to", "local"], 2),
        (["deploy", "nope", "v1", "--plan", "--to", "local"], 6),
        (["rollback", "web", "--to", "nowhere"], 6),
        (["rollback", "web", "../x", "--to", "local"], 2),
        (["app", "edit", "web", "--artifact", "git:ext::sh"], 2),
        (["infra", "edit", "local", "--set", "network=x"], 2),
        (["infra", "add", "d", "--driver", "docker", "--set", "host=tcp://h:1"], 2),
        (["infra", "add", "d", "--driver", "webhook"], 2),
    ],
)
def test_what_cannot_be_is_one_line_with_nothing_written(ready, counts, words, code):
    before = counts()
    done = ready(*words)
    assert (done.code, bool(done.error)) == (code, True)
    assert counts() == before


def test_settings_of_a_driver_are_given_one_by_one(ready):
    made = ready(
        "infra", "add", "ci", "--driver", "webhook", "--set", "url=https://ci.example/hook", "--set", "secret=ci/hook",
        "--set", "poll=false", "--json",
    )  # fmt: skip
    assert made.code == 0, made.stderr
    assert made.json["settings"] == {"url": "https://ci.example/hook", "secret": "ci/hook", "poll": False}


def test_a_log_goes_on_where_one_has_stopped_and_says_when(ready, ran, sql):
    number = ran("web", "v1")
    pieces = [("stdout", "one\ntwo\n"), ("stderr", "three\n"), ("platform", "web1: four\n")]
    for stream, content in pieces:
        sql(
            "INSERT INTO deployment_logs (deployment_id, attempt, stream, content) VALUES (%s, 1, %s, %s)",
            number, stream, content,
        )  # fmt: skip
    lines = ready("deployment", "logs", str(number), "--json").stdout.splitlines()
    cursors = [json.loads(line)["cursor"] for line in lines]
    rest = ready("deployment", "logs", "-f", str(number), "--since-id", str(cursors[0]), "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in rest] == ["three\n", "web1: four\n"]
    assert "deployment" not in ready("deployment", "logs", str(number)).stderr
    followed = ready("deployment", "logs", "-f", str(number))
    assert followed.stderr.splitlines()[-1].startswith(f"deployment {number}: success after "), "how it ended"
    shown = ready("deployment", "logs", str(number), "--timestamps").stdout.splitlines()
    assert [line.split(" ", 1)[1] for line in shown] == ["one", "two", "! three", "# web1: four"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.split(" ", 1)[0]) for line in shown)
