"""Known vulnerabilities of what is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from worker.doctor.finding import Finding, critical, note, ok

SECONDS = 120


def vulnerabilities() -> Iterator[Finding]:
    """pip-audit on this environment, where it is installed and can reach its data."""
    if importlib.util.find_spec("pip_audit") is None:
        yield note("vulnerabilities", "pip-audit is not installed", "pip install pip-audit, then ops doctor")
        return
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
        command += ["--skip-editable", "--timeout", "10", "--cache-dir", cache]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
            found = json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
            yield note("vulnerabilities", "pip-audit could not reach its data", "run ops doctor where it can")
            return
    bad = [each for each in found if each.get("vulns")]
    for each in bad:
        names = ", ".join(vulnerability["id"] for vulnerability in each["vulns"])
        fixes = sorted({fix for vulnerability in each["vulns"] for fix in vulnerability["fix_versions"]})
        do = f"upgrade it to {fixes[-1]}" if fixes else "see what the advisory says"
        yield critical("vulnerabilities", f"{each['name']} {each['version']}: {names}", do)
    if not bad:
        yield ok("vulnerabilities", f"none is known in {len(found)} packages")
