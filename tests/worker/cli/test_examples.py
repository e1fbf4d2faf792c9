"""Every command's help has an example, and each example works as it is written: here, or where workers are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from db.seals import new_pair
from db.services import sample
from tests.conftest import Database, settings_from
from tests.worker.cli.conftest import Ops
from worker.cli.root import app
from worker.servers import OWNER_ROLE

TESTS = Path(__file__).parents[2]
PRIVATE, PUBLIC = new_pair()
JOB = "2c497f7c-7696-452b-a576-823b5555b851"
#: Of those that need workers or a server, or run until they are stopped: where they are run.
ELSEWHERE = {
    "ops status --watch": "worker/cli/test_live.py",
    "ops up --detach": "e2e/test_up.py",
    "ops down": "e2e/test_up.py",
    "ops demo": "e2e/test_examples.py",
    "ops relay": "e2e/test_examples.py",
    "ops deploy web v1.2.3 --to production": "e2e/test_examples.py",
    "ops rollback web --to production": "e2e/test_examples.py",
    "ops deployment retry 42": "e2e/test_examples.py",
    "ops deployment logs -f 42": "worker/cli/test_releases.py",
    "ops check run-now site": "e2e/test_examples.py",
    "ops infra host scan production web1 --trust": "e2e/test_examples.py",
    "ops drain --all --wait": "e2e/test_drain.py",
    "ops serve --port 8080": "worker/serve/conftest.py",
    "ops db roles --passwords": "db/test_roles.py",
    'ops db revision -m "add a column to users"': "db/test_migrations.py",
    "ops encryption-key promote 2027": "worker/cli/test_keys.py",
    "ops encryption-key rotate --metadata shop.models:Base": "worker/cli/test_keys.py",
    "ops encryption-key retire 2026": "worker/cli/test_keys.py",
}
APP = ["ops app add web -- /bin/true"]
INFRA = ["ops infra add local", "ops infra add production"]
HOSTS = [
    "ops infra add production --driver ssh --set user=deploy --set key=ssh/deploy",
    "ops infra host add production web1 10.0.0.1", "ops infra host add production web2 10.0.0.2",
]  # fmt: skip
DEPLOYMENT = [*APP, *INFRA, "ops deploy web v1.2.3 --to production --detach"]
CHECK = ["ops check add site http https://example.org/healthz"]
SCHEDULE = [*APP, *INFRA, "ops schedule add nightly --every 1h --deploy web --to production --version v1.2.3"]
CHANNEL = ["ops channel add pager webhook --url https://pager.example.com/hook"]
ALICE = "ops user add alice a@example.org"
HOST = "ops infra add production --driver ssh --set user=deploy --set key=ssh/deploy"
#: What is there before, by the beginning of the example; the longest counts.
BEFORE: dict[str, list[str]] = {
    "./backup.sh": ["ops heartbeat add backup --period 3600"],
    "ops heartbeat token": ["ops heartbeat add backup --period 1h"],
    "ops alert": [*CHECK, ALICE],
    "ops app": APP,
    "ops app add": [],
    "ops audit opened": ["ops secret set github/token"],
    "ops audit verify": ["ops audit seal"],
    "ops channel": CHANNEL,
    "ops channel add": [],
    "ops channel enable": [*CHANNEL, "ops channel disable pager"],
    "ops check": CHECK,
    "ops check add": [],
    "ops check resume": [*CHECK, "ops check pause site"],
    "ops deployment": DEPLOYMENT,
    "ops infra": INFRA,
    "ops infra add": [],
    "ops infra host": HOSTS,
    "ops infra host add": [HOST],
    "ops maintenance end": ["ops maintenance add 'new disks' --match application=web --for 2h"] * 2,
    "ops resume": ["ops pause"],
    "ops route": CHANNEL,
    "ops route rm": [*CHANNEL, *["ops route add pager"] * 2],
    "ops rule reset": ["ops rule set queue_age --threshold 5"],
    "ops schedule": SCHEDULE,
    "ops schedule add": [*APP, *INFRA],
    "ops schedule resume": [*SCHEDULE, "ops schedule pause nightly"],
    "ops secret rm": ["ops secret set github/token"],
    "ops show": DEPLOYMENT,
    "ops silence end": ["ops silence add --match check=web* --for 2h"] * 2,
    "ops status-page": CHECK,
    "ops user": [ALICE],
    "ops user add": [],
    "ops user list": [],
}
#: Where nobody is there who could be told, and where there is something to say.
EXITS = {"ops channel test pager": 1, "ops doctor --quiet": 3}
#: What is typed, or comes through a pipe.
TYPED = {
    "ops db downgrade": "y\n",
    'printf %s "discord': "discord://1234567890/a-token-of-some-length",
    "ops user passwd": "correct horse battery\n" * 2,
    "ops user add": "correct horse battery\n" * 2,
}


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    for word, each in getattr(command, "commands", {}).items():
        yield from commands(f"{name} {word}", each)
    if not hasattr(command, "commands") and not command.hidden:
        yield name, command


def examples(command: Any) -> list[str]:
    said = re.split(r"\n\s*\n", f"{command.help or ''}\n\n{command.epilog or ''}")
    found = [re.split(r"\bExample: ", " ".join(each.split()))[1:] for each in said]
    return [each.strip() for some in found for each in some]


COMMANDS = dict(commands("ops", typer.main.get_command(app)))
EXAMPLES = [example for command in COMMANDS.values() for example in examples(command)]


def test_every_command_has_an_example() -> None:
    for name, command in COMMANDS.items():
        assert any(name in each for each in examples(command)), name


def test_what_is_run_elsewhere_is_an_example_and_is_run_there() -> None:
    assert set(ELSEWHERE) <= set(EXAMPLES)
    for example, where in ELSEWHERE.items():
        words = [word for word in shlex.split(example)[1:] if word.isalpha()]
        text = (TESTS / where).read_text("utf-8")
        assert all(word in text for word in words), (example, where)
        if where == "e2e/test_examples.py":
            assert example in text, example


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples' files are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deploy.sh").write_text("#!/bin/sh\n")
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8vx1XvUDPm5j1bVAZ4ZG7dYQ7yv5lJ9wX1mE1tF2aQ"
    (tmp_path / "web1.pub").write_text(key + "\n")
    return tmp_path


@pytest.fixture
def run(database: Database, ops: Ops, place: Path, sql: Callable[..., list[tuple]]) -> Callable[[str], None]:
    sample.first_admin("ann")
    with database.connect(OWNER_ROLE) as owner:
        owner.execute("ALTER TABLE deployments ALTER id RESTART 42")

    def run(line: str) -> None:
        """A line of a shell, without one."""
        _, _, command = line.rpartition(" | ")
        words = shlex.split(command.partition(" > ")[0].replace("/mnt/worm", str(place)))
        typed = next((text for name, text in TYPED.items() if line.startswith(name)), "a secret of some length")
        done = ops(*words[1:], stdin=typed)
        assert done.code == EXITS.get(line, 0), f"{line}\n{done.stdout}{done.stderr}"

    return run


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each not in ELSEWHERE])
def test_an_example_works_as_it_is_written(run, sql, example: str) -> None:
    before = max((name for name in BEFORE if example.startswith(name)), key=len, default=None)
    seals = {"OPS_AUDIT_SEAL_KEY": PRIVATE, "OPS_AUDIT_SEAL_FILE": "seals.jsonl"}
    with settings_from(seals if example.startswith("ops audit") else {}):
        for line in BEFORE[before] if before else []:
            run(line)
        prepare(sql, example)
        for line in re.split(r" && | \|\| ", example):
            if line.startswith(("ops ", "printf ")):
                run(line)


def prepare(sql: Callable[..., list[tuple]], example: str) -> None:
    """What no command makes."""
    if example.startswith("ops apply"):
        Path("ops.yaml").write_text("infrastructure: {production: {environment: production}}\n")
    if example.startswith("ops undrain"):
        sql("INSERT INTO processes (id, kind, name, host, pid, started_at, seen_at, info) VALUES (gen_random_uuid(),"
            " 'worker', 'w1', 'here', 1, now(), now(), '{\"ready\": true}')")  # fmt: skip
    if example.startswith("ops alert"):
        sql(
            "INSERT INTO monitoring_alerts (id, fingerprint, alert_type, severity, title, status, started_at, fired_at)"
            " OVERRIDING SYSTEM VALUE VALUES (3, 'check_down:1', 'check_down', 'high', 'down', 'firing', now(), now())"
        )
    if JOB in example:
        sql("SELECT ops_enqueue('tests.task', p_id => %s)", JOB)
