"""`make bench`: ratios taken in one run on one machine, each with its target and PASS or MISS.

``make bench ARGS="encrypted search"`` runs parts of it, by the names in PARTS. BENCH_STRICT=1 makes a MISS an exit code
of 1. ``BENCH_AUDIT_ROWS=5000000 make bench ARGS=search`` searches a larger trail. What is not said to be a ratio is a
figure of this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.bench import (
    audited,
    checks,
    commandline,
    encrypted,
    jobs,
    metrics,
    repositories,
    rollouts,
    scheduled,
    told,
    trail,
)
from tests.bench.report import Report
from tests.bench.servers import platform
from tests.e2e.platform import Platform

#: In this order: what brings workers comes last.
PARTS: dict[str, Callable[[Platform, Report], None]] = {
    "encrypted": lambda _bench, report: encrypted.reading(report),
    "repositories": lambda bench, report: repositories.against_pgbench(bench.database, report),
    "audited": lambda bench, report: audited.on_and_off(bench.database, report),
    "peers": lambda bench, report: audited.beside_others(bench, report),
    "sealed": trail.sealed,
    "search": trail.search,
    "metrics": metrics.scraping,
    "commandline": commandline.start_up,
    "checks": checks.against_others,
    "scheduled": scheduled.alone,
    "told": told.from_down,
    "rollouts": rollouts.against_ssh,
    "jobs": jobs.against_celery,
}


def main() -> int:
    report = Report()
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        print(f"bench: no part is called {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
        return 2
    print("bench: servers and workers of their own; nothing else should run on this machine")
    with platform() as bench:
        for name, part in PARTS.items():
            if name in wanted:
                part(bench, report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
