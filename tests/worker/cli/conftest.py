"""`ops` in this process: what it prints, and its exit code."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from db.services import sample
from tests.conftest import Database, settings_from
from worker import publish
from worker.cli import main
from worker.cli.output import out


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line of a command that failed."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        assert "Traceback" not in self.stderr
        return lines[0].removeprefix("error: ")


Ops = Callable[..., Done]


@pytest.fixture
def ops(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Ops]:
    """Run a command: ``ops("app", "list", user="ann", stdin="...")``; settings are those of the environment."""

    def run(*arguments: str, user: str = "ann", stdin: str | None = None) -> Done:
        with settings_from({"OPS_USER": user}):
            out.json = False
            out._consoles.clear()
            monkeypatch.setattr(sys, "argv", ["ops", *arguments])
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((stdin or "").encode())))
            capfd.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
            captured = capfd.readouterr()
            code = ended.value.code
            assert isinstance(code, int)
            return Done(code, captured.out, captured.err)

    yield run
    out.json = False
    publish._line = None


@pytest.fixture
def ready(database: Database, ops: Ops) -> Ops:
    """With a first admin called ann, an application and an infrastructure."""
    sample.first_admin("ann")
    assert ops("app", "add", "web", "--", "/bin/true").code == 0
    assert ops("infra", "add", "local").code == 0
    return ops


@pytest.fixture
def counts(sql: Callable[..., list[tuple[Any, ...]]]) -> Callable[[], dict[str, int]]:
    """How many rows each table has, to see that a refused command has written nothing."""

    def look() -> dict[str, int]:
        tables = ("users", "api_keys", "applications", "infrastructure", "deployments", "jobs")
        return {table: sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    return look


@pytest.fixture
def apply(ready: Ops, tmp_path: Path):
    def run(document: str | bytes, *options: str, user: str = "ann") -> Any:
        path = tmp_path / "ops.yaml"
        path.write_bytes(document if isinstance(document, bytes) else document.encode())
        return ready("apply", "-f", str(path), *options, user=user)

    return run


@pytest.fixture
def facts(sql):
    """All that a document can change, and how long the trail is."""

    def look() -> list[tuple]:
        tables = (
            *("applications", "infrastructure", "hosts", "schedules", "monitoring_checks"),
            *("alert_rules", "notification_channels", "notification_routes"),
        )
        rows = [row for table in tables for row in sql(f"SELECT to_jsonb(t) FROM {table} t ORDER BY 1")]
        return rows + sql("SELECT count(*) FROM audit_logs WHERE action NOT LIKE 'tick.%'")

    return look


os.environ.setdefault("TERM", "dumb")
