"""`ops apply` and `ops export`: what a document says is what there is, all of it or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.worker.cli.bad_documents import BAD
from tests.worker.cli.conftest import Ops

ROOT = Path(__file__).parent.parent.parent.parent
DOCUMENT = """applications:
  web:
    command: [./deploy.sh, --fast]
    working_directory: /srv/web
    configuration:
      environment: {LEVEL: debug}
      secrets: {TOKEN: github/token}
infrastructure:
  local:
    environment: staging
schedules:
  nightly:
    cron: 30 2 * * *
    timezone: Europe/Berlin
    deploy: {application: web, infrastructure: local, version: v1}
  report:
    every: 15m
    task: {name: shop.report, queue: shop, kwargs: {day: today}}
    overlap: queue
"""


def actions(done) -> list[tuple[str, str]]:
    return [(each["action"], each["name"]) for each in done.json["changes"]]


def test_a_document_is_made_so_and_a_second_time_changes_nothing(ready: Ops, apply, facts, sql) -> None:
    done = apply(DOCUMENT, "--json")
    assert done.code == 0, done
    assert actions(done) == [("change", "web"), ("change", "local"), ("create", "nightly"), ("create", "report")]
    assert done.json["changes"][0]["fields"]["command"] == [["/bin/true"], ["./deploy.sh", "--fast"]]
    assert done.json["changes"][1]["fields"] == {"environment": [None, "staging"]}
    assert ready("--json", "schedule", "show", "nightly").json["what"] == "deploy web v1 to local"
    before = facts()
    again = apply(DOCUMENT)
    assert (again.code, again.stdout) == (0, "no changes\n")
    assert facts() == before
    assert sql("SELECT DISTINCT details->>'via' FROM audit_logs WHERE action = 'schedule.created'") == [("ops apply",)]


def test_what_people_see_is_the_difference(apply) -> None:
    lines = apply(DOCUMENT, "--dry-run").stdout.splitlines()
    assert "~ application web" in lines
    assert '    command: ["/bin/true"] -> ["./deploy.sh", "--fast"]' in lines
    assert "    configuration.secrets.TOKEN: (none) -> github/token" in lines
    assert "+ schedule nightly" in lines
    assert lines[-1] == "2 to create, 2 to change, nothing was changed, 0 as they are"


def test_a_dry_run_changes_nothing_and_says_what_would_be_refused(apply, facts) -> None:
    before = facts()
    assert len(actions(apply(DOCUMENT, "--dry-run", "--json"))) == 4
    assert facts() == before
    refused = apply(DOCUMENT.replace("infrastructure: local", "infrastructure: moon"), "--dry-run")
    assert refused.code == 6
    assert "ops.yaml:15: schedules.nightly.deploy.infrastructure: there is no infrastructure 'moon'" in refused.error
    assert facts() == before


def test_what_was_exported_and_is_applied_is_nothing_new(ready: Ops, apply, facts, tmp_path: Path) -> None:
    apply(DOCUMENT)
    ready(
        "app", "add", "caf.e", "--env", "TEXT=1e3", "--env", "ODD=a\u202eb\nc: [x] # y", "--", "echo", "yes", "0x1F", ""
    )
    ready(
        "schedule", "add", "once", "--once", "2199-01-01T00:00", "--task", "t", "--queue", "q", "--args", "[1.0, null]"
    )
    ready("schedule", "pause", "nightly")
    before = facts()
    exported = ready("export")
    assert exported.code == 0
    assert "\u202e" not in exported.stdout
    assert apply(exported.stdout).stdout == "no changes\n"
    piped = ready("apply", "-f", "-", "--prune", stdin=exported.stdout)
    assert piped.stdout == "no changes\n"
    assert json.loads(ready("export", "--json").stdout)["applications"].keys() == {"web", "caf.e"}
    assert apply(ready("export", "--json").stdout).stdout == "no changes\n", "JSON is YAML"
    assert facts() == before
    assert list(ready("export", "schedules", "--json").json) == ["schedules"]


def test_what_is_left_out_is_as_by_default_and_what_is_not_named_stays(ready: Ops, apply) -> None:
    apply(DOCUMENT)
    done = apply("applications:\n  web: {command: [./deploy.sh, --fast]}\n", "--json")
    assert done.json["changes"][0]["fields"] == {
        "working_directory": ["/srv/web", None],
        "configuration.environment.LEVEL": ["debug", None],
        "configuration.secrets.TOKEN": ["github/token", None],
    }
    assert ready("schedule", "show", "nightly").code == 0


def test_hosts_are_all_that_are_named_and_stay_where_nothing_is_said_of_them(ready: Ops, apply, sql) -> None:
    def hosts() -> list[tuple]:
        return sql("SELECT name, address, port FROM hosts ORDER BY position")

    local = "infrastructure:\n  local:\n    hosts:\n      two: {address: 10.0.0.2}\n"
    assert apply(f"{local}      one: {{address: 10.0.0.1, port: 2222}}\n").code == 0
    assert hosts() == [("two", "10.0.0.2", 22), ("one", "10.0.0.1", 2222)]
    assert apply(ready("export").stdout).stdout == "no changes\n"
    assert apply("infrastructure: {local: {}}").stdout == "no changes\n"
    before = sql("SELECT count(*) FROM audit_logs")
    refused = apply(f"{local}      one: {{address: -oProxyCommand=x}}\n")
    assert (refused.code, "ops.yaml:5: infrastructure.local.hosts.one.address" in refused.error) == (2, True), refused
    assert sql("SELECT count(*) FROM audit_logs") == before
    done = apply(local.replace("0.2", "0.9") + "      three: {address: host.example.org}\n", "--json")
    assert done.json["changes"][0]["fields"]["hosts.two.address"] == ["10.0.0.2", "10.0.0.9"]
    assert hosts() == [("two", "10.0.0.9", 22), ("three", "host.example.org", 22)]
    assert apply("infrastructure: {local: {hosts: {}}}").code == 0
    assert hosts() == []
    assert apply("infrastructure: {local: {hosts: {}}}").stdout == "no changes\n"


def test_pruning_removes_what_is_not_named_of_the_kinds_that_are(ready: Ops, apply) -> None:
    apply(DOCUMENT)
    ready("app", "add", "old", "--", "true")
    without = DOCUMENT[: DOCUMENT.index("  report:")]
    assert actions(apply(without, "--json")) == []
    assert actions(apply(without, "--prune", "--json")) == [("remove", "old"), ("remove", "report")]
    assert ready("app", "show", "old").code == 6
    done = apply("schedules:\n", "--prune")
    assert "- schedule nightly" in done.stdout
    assert ready("app", "show", "web").code == 0, "applications are not spoken of"


def test_what_is_still_needed_is_not_pruned_and_nothing_else_is_done(ready: Ops, apply, facts) -> None:
    apply(DOCUMENT)
    before = facts()
    done = apply("applications:\n  other: {command: [x]}\n", "--prune")
    assert done.code == 5
    assert "ops.yaml: applications.web: this application is still used by schedules" in done.error
    assert facts() == before


def test_a_name_in_other_capitals_is_the_same_thing(ready: Ops, apply) -> None:
    done = apply("applications:\n  WEB: {command: [/bin/true]}\n", "--json")
    assert done.json["changes"][0]["fields"] == {"name": ["web", "WEB"]}
    assert ready("--json", "app", "show", "web").json["id"] == 1


def test_who_may_not_is_told_where_and_nothing_is_done(ready: Ops, apply, facts) -> None:
    apply(DOCUMENT)
    ready("user", "add", "vera", "vera@example.org", "--role", "viewer")
    ready("user", "add", "olga", "olga@example.org")
    before = facts()
    assert apply(DOCUMENT.replace("--fast", "--slow"), user="vera").code == 5
    done = apply(DOCUMENT.replace("15m", "20m"), user="olga")
    assert done.code == 5
    assert "ops.yaml:16: schedules.report: editing schedules of others needs the role admin" in done.error
    assert apply(DOCUMENT, "--prune", user="olga").stdout == "no changes\n"
    assert facts() == before


def test_who_edits_meanwhile_is_not_overwritten(ready: Ops, apply, facts, monkeypatch) -> None:
    from db.connection import get_db_session
    from db.repositories import ApplicationRepository
    from db.services import applications
    from db.services.declared import document

    real = document._compare

    def edited_meanwhile(*arguments: Any) -> Any:
        with get_db_session() as other:
            found = ApplicationRepository(other).require_by_name("web")
            applications.edit(other, application=found, description=f"{found.version_id}")
        return real(*arguments)

    monkeypatch.setattr(document, "_compare", edited_meanwhile)
    done = apply(DOCUMENT)
    assert done.code == 5
    assert "ops.yaml:2: applications.web: this application has been changed by somebody else" in done.error
    assert ready("--json", "app", "show", "web").json["command"] == "/bin/true"


def test_the_schema_is_the_one_in_the_documentation_and_holds_what_is_exported(ready: Ops, apply) -> None:
    printed = ready("apply", "--schema")
    assert printed.code == 0
    assert printed.stdout == (ROOT / "docs" / "ops.schema.json").read_text("utf-8"), (
        "ops apply --schema > docs/ops.schema.json"
    )
    made = json.loads(printed.stdout)
    assert list(made["properties"]) == ["applications", "infrastructure", "schedules", "checks", "rules", "channels"]
    assert "name" not in made["$defs"]["ApplicationSpec"]["properties"]
    assert made["$defs"]["ScheduledTask"]["required"] == ["name", "queue"]


def test_several_mistakes_are_told_at_once_the_first_one_last(apply, facts) -> None:
    before = facts()
    done = apply("applications:\n  web:\n    comand: [x]\n    health_check_url: ftp://x\n  b: 1\n")
    assert done.code == 2
    assert "ops.yaml:2: applications.web.command: Field required (and 3 more)" in done.error
    for line in (
        "ops.yaml:3: applications.web.comand",
        "ops.yaml:4: applications.web.health",
        "ops.yaml:5: applications.b",
    ):
        assert line in done.stderr
    assert facts() == before


@pytest.mark.parametrize("part", range(4))
def test_each_bad_document_is_refused_with_the_line_that_is_wrong_and_nothing_is_written(apply, facts, part) -> None:
    assert len(BAD) >= 100
    before = facts()
    for document, line, says in BAD[part::4]:
        done = apply(document)
        assert done.code == 2, (document[:200], done)
        assert f"ops.yaml:{line}:" in done.error, (document[:200], done.error)
        assert says in done.error, (document[:200], done.error)
        assert len(done.error) < 900
    assert facts() == before


def test_what_is_right_beside_what_is_wrong_is_not_done_either(apply, facts) -> None:
    before = facts()
    done = apply("infrastructure: {new: {}}\napplications:\n  new: {command: [x]}\nschedules:\n  s: {every: 1h}\n")
    assert (done.code, "ops.yaml:5: schedules.s: one of deploy and task" in done.error) == (2, True), done
    assert facts() == before


@pytest.mark.parametrize("data", [b"a: \xff", b"applications: {}\x00", b"#" * 1_000_001, b"[" * 90_000])
def test_bytes_that_are_no_text_are_refused(apply, facts, data: bytes) -> None:
    before = facts()
    done = apply(data)
    assert (done.code, "ops.yaml:1: " in done.error) == (2, True), done
    assert facts() == before


def test_a_file_that_is_not_there_is_said_to_be_none(ready: Ops, tmp_path: Path) -> None:
    assert "No such file" in ready("apply", "-f", str(tmp_path / "none.yaml")).error
    assert ready("apply", "-f", str(tmp_path)).code == 2
    assert "no document is named" in ready("apply").error
    assert "is no kind" in ready("export", "servers").error
