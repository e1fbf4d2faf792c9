"""A real `ops serve` in a process of its own, and a client that sees everything of an answer."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests.conftest import SCHEMA, Database

OPS = [sys.executable, "-c", "from worker.cli import main; main()"]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> object:
        return json.loads(self.body)


@dataclass
class Server:
    """One that serves."""

    process: subprocess.Popen[str]
    url: str
    said: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """Headers as keywords: ``X_Forwarded_For="..."``."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            line.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = line.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            line.close()

    def stop(self) -> tuple[int, str]:
        """Its exit code, and what it wrote to stderr."""
        self.process.terminate()
        _, remarks = self.process.communicate(timeout=60)
        return self.process.returncode, remarks


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[Server]:
    names = ("DATABASE_URL", "OPS_BROKER_URL", "PATH", "HOME", "OPS_DATA_DIR")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    process = subprocess.Popen(
        [*OPS, "serve", "--json", "--port", "0", *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=kept | {"OPS_DATABASE_SCHEMA": SCHEMA} | environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield Server(process, json.loads(line)["url"])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def server(database: Database) -> Iterator[Server]:
    with serving() as made:
        yield made


Serving = Callable[..., Server]
