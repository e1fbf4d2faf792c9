"""The statements that each migration runs, linted by squawk: what blocks readers or writers, or breaks old workers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

#: The oldest server that is supported.
POSTGRES = "15"
#: What the first migration is excused of, since all its tables are new; no other one is. A statement of a later one
#: that is right nevertheless says so itself: `-- squawk-ignore RULE`, with the reason in a comment.
FIRST = {
    "prefer-bigint-over-int": "they count attempts and seconds, within bounds that CHECKs or callers set",
    "prefer-bigint-over-smallint": "a priority is 0 to 9",
    "prefer-text-field": "the version table is Alembic's own",
}


def main() -> int:
    from db import migrate

    squawk = Path(sys.executable).parent / "squawk"
    failed = 0
    with tempfile.TemporaryDirectory(prefix="ops-squawk-") as folder:
        for step in reversed(migrate.history(compare=False)):
            path = Path(folder) / f"{step.revision}.sql"
            path.write_text(migrate.offline_sql(f"{step.after}:{step.revision}" if step.after else step.revision))
            excused = [f"--exclude={rule}" for rule in FIRST] if step.after is None else []
            command = [squawk, "--pg-version", POSTGRES, "--reporter", "gcc", *excused, path.name]
            failed += subprocess.run(command, cwd=folder, check=False, env=os.environ | {"NO_COLOR": "1"}).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
