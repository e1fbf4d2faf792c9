"""Run the hammer by hand and print what it counted: ``python -m tests.chaos --jobs 3000 --keys 8``."""

from __future__ import annotations

import argparse

from tests.chaos.hammer import run
from tests.chaos.plan import Plan
from tests.chaos.promises import broken_promises


def main() -> int:
    # Here and not above: the hammer's processes import this module, and need none of it.
    from tests.chaos.standalone import migrated_database
    from tests.conftest import SCHEMA

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--keys", type=int, default=0)
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--cut-every", type=float, default=0.0, help="seconds between two backends that are cut")
    given = parser.parse_args()
    plan = Plan(**vars(given), lease_seconds=1.0 if given.faults else 9.0)
    with migrated_database() as database:
        report = run(plan, database.url, SCHEMA)
    print(plan)
    print(f"{plan.jobs / report.seconds:.0f} jobs/s; enqueued at {plan.jobs / report.enqueue_seconds:.0f}/s")
    for name, count in sorted(report.counts.items()):
        print(f"{count:8} {name}")
    broken = broken_promises(report)
    print("\n".join(broken) or "all promises were kept")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
