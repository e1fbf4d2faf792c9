"""`make` on a machine that is not as it should be: one line that says what to install, and no half-made environment."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTALL = ROOT / ".ci" / "install.py"


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make` in a folder that has the files that the installation reads, and nothing else."""
    for name in ("Makefile", "pyproject.toml", "requirements-embedded.txt"):
        shutil.copy2(ROOT / name, folder)  # with its time
    shutil.copytree(ROOT / ".ci", folder / ".ci", dirs_exist_ok=True)
    bare = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=bare | environment, capture_output=True, text=True, check=False
    )  # fmt: skip


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """What is said beside make's own last line."""
    assert done.returncode == 2
    (line, last) = done.stderr.splitlines()
    assert last.startswith("make: ***")
    return line


def test_without_a_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    line = only_line(make(tmp_path, "PYTHON=no-such-python", "demo"))
    assert line.startswith("error: there is no no-such-python; install Python 3.11 or newer (with venv)")
    assert not (tmp_path / ".venv").exists()


def test_a_python_without_venv_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    line = only_line(make(tmp_path, f"PYTHON={sys.executable}", "demo", PYTHONPATH=str(tmp_path)))
    assert line.startswith("error: this Python has no venv module; install it (on Debian: apt install python3.")
    assert not (tmp_path / ".venv").exists()


def test_an_old_python_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 10, 0, 'final', 0)\n")
    line = only_line(make(tmp_path, f"PYTHON={sys.executable}", "demo", PYTHONPATH=str(tmp_path)))
    assert line.startswith("error: Python 3.10 is too old; install Python 3.11 or newer")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_an_environment_that_was_moved_or_copied_is_not_used(tmp_path: Path) -> None:
    """Its programs are missing, or they run the code of the folder that it was copied from."""
    usable = runpy.run_path(str(INSTALL))["usable"]
    made = tmp_path / "a b" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(made)], check=True)
    assert usable(str(made / "bin" / "python"))
    copied = tmp_path / "copy" / ".venv"
    shutil.copytree(made, copied, symlinks=True)
    assert not usable(str(copied / "bin" / "python"))
    moved = made.parent.rename(tmp_path / "moved") / ".venv"
    assert not usable(str(moved / "bin" / "python"))
    assert not usable(str(tmp_path / "nothing" / "bin" / "python"))


@pytest.mark.parametrize(("there", "again"), [("/somewhere/else", True), (None, False)])
def test_make_notices_that_the_clone_was_moved(tmp_path: Path, there: str | None, again: bool) -> None:
    assert make(tmp_path).returncode == 0
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").write_text(f"{there or tmp_path.resolve()}\n")
    assert ("install.py" in make(tmp_path, "--dry-run", "demo").stdout) is again


CLOSED = """
import importlib, importlib.metadata as metadata, pkgutil, re, sys

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

locked = set(re.findall(r"^([a-z0-9._-]+)==", open("requirements.txt").read(), re.M))
ours = ("db", "tasks", "worker", "migrations")
closed = {
    module for module, names in metadata.packages_distributions().items()
    if module not in ours and not locked & set(map(plain, names))
}
assert "pytest" in closed and "celery" not in closed

class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in closed:
            raise ModuleNotFoundError(f"{name} is not in requirements.txt", name=name)

sys.meta_path.insert(0, Closed())
for name in ours[:3]:
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        importlib.import_module(module.name)
import celery.bin.celery, flower.app, flower.command
from worker.app import app
app.connection_for_write().transport
"""


def test_the_locked_packages_are_all_that_a_production_host_needs() -> None:
    """The tests' own packages would hide a missing one."""
    settings = {
        "OPS_BROKER_URL": "redis://localhost:1/0",
        "DATABASE_URL": "postgresql://localhost/x",
        "OPS_DATA_DIR": "/nowhere",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLOSED], cwd=ROOT, env={"PATH": os.environ["PATH"]} | settings, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
