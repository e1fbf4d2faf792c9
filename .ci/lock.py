"""Resolve the dependencies into the three requirement files: universal (Python 3.11 to 3.14), with hashes."""

import subprocess
import sys
from pathlib import Path

PRODUCTION = ("cli", "flower", "ssh", "docker", "notify", "probes", "serve")
FILES = {
    "requirements-dev.txt": (*PRODUCTION, "embedded", "editable", "dev"),
    "requirements-embedded.txt": (*PRODUCTION, "embedded", "editable"),
    "requirements.txt": PRODUCTION,
}


def main() -> int:
    uv = Path(sys.executable).parent / "uv"
    program = str(uv) if uv.exists() else "uv"
    for name, extras in FILES.items():
        command = [program, "pip", "compile", "pyproject.toml", "--universal", "--generate-hashes", "--upgrade"]
        command += ["--python-version", "3.11", "--no-emit-index-url", "--no-emit-find-links", "--quiet", "--no-header"]
        for extra in extras:
            command += ["--extra", extra]
        # The largest set is resolved first and bounds the others, so that all three agree.
        if name != "requirements-dev.txt":
            command += ["--constraint", "requirements-dev.txt"]
        subprocess.run([*command, "--output-file", name], check=True)
        print(f"{name}: {Path(name).read_text().count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
