"""A secret is in the clear in the process that uses it, and nowhere else: searched for in every place there is."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest

from db.connection import get_db_session
from db.service import DatabaseService
from tests.e2e.flower import Flower
from tests.e2e.platform import Platform
from tests.e2e.process import descendants, until
from worker.servers import postgres_bin

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}")


class Seeker:
    """Finds a value in any text: as it is, quoted, and inside of base64, wherever that begins."""

    def __init__(self, value: str) -> None:
        spellings = {value, json.dumps(value)[1:-1], quote(value, safe=""), repr(value)[1:-1], value[:20]}
        self.needles = [each.encode() for each in spellings]

    def sees(self, text: str | bytes) -> bool:
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        return self._plain(raw) or any(self._inside(found.group()) for found in _BASE64.finditer(raw))

    def _plain(self, raw: bytes) -> bool:
        return any(needle in raw for needle in self.needles)

    def _inside(self, run: bytes) -> bool:
        run = run.replace(b"-", b"+").replace(b"_", b"/")
        for offset in range(4):
            piece = run[offset : offset + (len(run) - offset) // 4 * 4]
            if self._plain(base64.b64decode(piece)):
                return True
        return False


def test_the_search_finds_what_is_there() -> None:
    seeker = Seeker('tok-0123456789abcdef0123/+"é')
    for hidden in (
        "x tok-0123456789abcdef0123 x",
        base64.b64encode(b'{"a": "tok-0123456789abcdef0123"}').decode(),
        "k=" + base64.urlsafe_b64encode(b'...tok-0123456789abcdef0123/+"\xc3\xa9').decode(),
    ):
        assert seeker.sees(hidden)
    assert not seeker.sees("tok-012345678")


@contextmanager
def everything_the_broker_hears(platform: Platform) -> Iterator[list[str]]:
    heard: list[str] = []
    with platform.broker.monitor() as monitor:

        def listen() -> None:
            for command in monitor.listen():
                heard.append(str(command["command"]))
                if "that is all" in heard[-1]:
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        yield heard
        platform.broker.echo("that is all")
        thread.join(10)


def what_lies_in_the_broker(platform: Platform) -> Iterator[bytes]:
    for key in platform.broker.keys("*"):
        yield key
        yield platform.broker.dump(key) or b""
        match platform.broker.type(key):
            case b"list":
                yield from platform.broker.lrange(key, 0, -1)
            case b"hash":
                yield from (part for pair in platform.broker.hgetall(key).items() for part in pair)
            case b"set":
                yield from platform.broker.smembers(key)


def what_processes_show(platform: Platform) -> Iterator[tuple[str, bytes]]:
    """Arguments and environment of every process of the platform; of the deployed program itself only arguments."""
    for process in platform.processes:
        for pid in [process.pid, *descendants(process.pid)]:
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            yield f"arguments of {pid}", arguments
            if b"effect.py" not in arguments:
                yield f"environment of {pid}: {arguments!r}", environment


def test_a_secret_that_was_used_is_found_nowhere(platform: Platform) -> None:
    value = f'tok-{uuid4().hex}/+"é'
    seeker = Seeker(value)
    worker = platform.worker("w1", "--loglevel=DEBUG")
    beat = platform.beat("beat", "--loglevel=DEBUG")
    flower = Flower(platform)
    host = f"w1@{os.uname().nodename}"
    gate = platform.folder / "gate"
    platform.deploy("--seconds", "0", infra="before")
    with get_db_session() as session:
        DatabaseService(session).store_api_key(platform.user, "aws", "token", value)
    secrets = {"TOKEN": "aws/token"}
    say = ("--print", "the token is $TOKEN, in base64 $(echo)")
    with everything_the_broker_hears(platform) as heard:
        good = platform.deploy("--gate", str(gate), *say, secrets=secrets)
        bad = platform.deploy(*say, "--exit", "3", infra="bad", secrets=secrets)
        wrong = platform.deploy(infra="wrong", secrets=secrets, app="wrong", command=["/no/such/program"])
        pid = platform.wait_begun(good)
        assert seeker.sees(Path(f"/proc/{pid}/environ").read_bytes()), "the deployed program has it"
        shown = dict(what_processes_show(platform))
        in_broker = list(what_lies_in_the_broker(platform))
        activity = platform.rows("SELECT query FROM pg_stat_activity", role="postgres")
        until(lambda: flower.knows(good.job, "STARTED"), "Flower has heard of it")
        flower.look_around(host, good.job)
        gate.touch()
        ended = [platform.wait_ended(each) for each in (good, bad, wrong)]
    assert ended == ["success", "failed", "failed"]
    until(lambda: flower.knows(good.job, "SUCCESS"), "Flower has heard of its end")
    until(lambda: flower.knows(bad.job, "FAILURE"), "Flower has heard of the other's end")
    flower.look_around(host, good.job, bad.job, wrong.job)
    until(lambda: "[secret]" in platform.log_of(good.id), "what it printed was masked")
    assert worker.stop() == 0
    beat.stop()
    flower.process.stop()
    assert any("deployments" in command for command in heard)
    assert len(shown) >= 8

    places: dict[str, list[str | bytes]] = {
        "what processes show": list(shown.values()),
        "the broker": [*in_broker, *heard, *what_lies_in_the_broker(platform)],
        "what Flower shows": list(flower.answers),
        "logs of processes": [process.text for process in platform.processes],
        "statements": [str(row) for row in activity],
        "a dump of the database": [dump(platform)],
    }
    for table in ("audit_logs", "jobs", "deployments", "deployment_logs", "api_keys", "applications"):
        places[f"table {table}"] = [str(row) for row in platform.rows(f"SELECT * FROM {table}")]
        assert places[f"table {table}"]
    found = {place for place, texts in places.items() if any(map(seeker.sees, texts))}
    assert found == set()
    opened = platform.rows("SELECT 1 FROM audit_logs WHERE action = 'secret.opened'")
    assert len(opened) == 3, "each opening is in the trail"


def dump(platform: Platform) -> str:
    stack = platform.stack
    done = subprocess.run(
        [
            str(postgres_bin() / "pg_dump"), "-h", str(stack.run_dir), "-U", "postgres", "--inserts",
            platform.database.name,
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "INSERT INTO" in done.stdout
    return done.stdout
