"""docs/tutorial.md, typed line by line: every command works, and prints what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.platform import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("tutorial")]

PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
#: Told after each command: its number and its exit code.
MARK = "@@@"
#: Those that fail, as the page says.
FAIL = {"ops deploy shop v2 --to production": 1}


def typed() -> Iterator[tuple[str, str]]:
    """Each command of the page, and what it prints."""
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            more = [line.removeprefix("> ") for line in lines[1:] if line.startswith("> ")]
            said = [line for line in lines[1:] if not line.startswith("> ")]
            yield "\n".join([lines[0], *more]), "\n".join(said)


def matches(wanted: str, said: str) -> bool:
    pattern = re.escape(wanted).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, said.strip(), re.DOTALL) is not None


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ops-tutorial-"))
    yield made
    subprocess.run([made / "bin" / "ops", "down"], cwd=made / "shop", check=False, capture_output=True)
    shutil.rmtree(made, ignore_errors=True)


def test_every_command_of_the_tutorial_does_what_the_page_says(folder: Path) -> None:
    program = folder / "bin" / "ops"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from worker.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    page = list(typed())
    assert len(page) > 25
    script = "\n".join(f"{command}\ncode=$?; echo; echo '{MARK}' {n} $code" for n, (command, _) in enumerate(page))
    kept = {name: os.environ[name] for name in ("HOME", "OPS_POSTGRES_BIN") if name in os.environ}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, text=True, check=False, stdin=subprocess.DEVNULL, capture_output=True,
        env=kept | {"PATH": f"{program.parent}:{os.environ['PATH']}", "OPS_USER": "ann", "PYTHONPATH": str(ROOT),
                    "COLUMNS": "200"},
    )  # fmt: skip
    told = re.split(rf"\n{MARK} (\d+) (\d+)\n", "\n" + done.stdout)
    assert len(told) == 3 * len(page) + 1, done.stdout + done.stderr
    for n, (command, wanted) in enumerate(page):
        said, code = told[3 * n], int(told[3 * n + 2])
        assert code == FAIL.get(command, 0), f"$ {command}\n{said}\n{done.stderr}"
        assert matches(wanted, said), f"$ {command}\n{said}\nis not\n{wanted}"
