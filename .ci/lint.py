"""All checks that read the code: each says its name, all run, the worst decides."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS = {
    "format": [BIN / "ruff", "format", "--check", "."],
    "style": [BIN / "ruff", "check", "."],
    "types": [BIN / "mypy"],
    "imports": [BIN / "lint-imports"],
    "reference": [sys.executable, ".ci/reference.py", "--check"],
    "migrations": [sys.executable, ".ci/drift.py"],
    "migrations' statements": [sys.executable, ".ci/squawk.py"],
}


def main() -> int:
    failed = []
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    for name, command in CHECKS.items():
        print(f"== lint: {name}", flush=True)
        if subprocess.run(command, check=False, env=environment).returncode != 0:
            failed.append(name)
    print("== lint: known vulnerabilities", flush=True)
    if not audit():
        failed.append("known vulnerabilities")
    print(f"lint: failed: {', '.join(failed)}" if failed else "lint: passed")
    return 1 if failed else 0


def audit() -> bool:
    """pip-audit on what is locked for production, where its data can be reached; says so where it cannot."""
    with tempfile.TemporaryDirectory() as cache:
        command = [BIN / "pip-audit", "--disable-pip", "--require-hashes", "-r", "requirements.txt"]
        command += ["--cache-dir", cache, "--timeout", "10", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        print(output.splitlines()[-1] if output else "none known")
        return True
    if "vulnerabilit" in output and "Found" in output:
        print(output)
        return False
    print("not checked: the vulnerability database cannot be reached from here")
    return True


if __name__ == "__main__":
    sys.exit(main())
