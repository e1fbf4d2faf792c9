"""`make chaos`: 500 checks of sites whose down intervals are scripted, while workers, beats, broker and database are
killed at random. Alerts must be the true intervals, none missed and none invented, each told once per channel.

CHAOS_SECONDS (300) is how long the script takes; CHAOS_SEED makes the same script and the same faults again.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import requests

from db.connection import get_db_session
from db.encryption import new_key
from db.service import DatabaseService
from db.services import channels
from tests.chaos import truth
from tests.chaos.standalone import migrated_database
from tests.conftest import settings_from
from tests.e2e.conftest import running_platform
from tests.e2e.platform import Platform
from tests.e2e.process import Process, until

SITES = int(os.environ.get("CHAOS_SITES", "500"))
#: How long all may take to be over after the script, in seconds.
SETTLE_SECONDS = 240.0
ALLOW = {"OPS_PROBE_ALLOW": "127.0.0.1/32"}
#: name: queues. Two beats come to them.
WORKERS = {"checks-1": "checks", "checks-2": "checks", "control": "control,deployments"}
BEATS = ("beat-1", "beat-2")
#: One tells of each alert by itself, one gathers.
CHANNELS: dict[str, dict[str, Any]] = {
    "each": {"wait_seconds": 0, "group_by": ["check"]},
    "gathered": {"wait_seconds": 5},
}


@dataclass
class Chaos:
    """The platform under test, and what was done to it."""

    platform: Platform
    dice: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    running: dict[str, Process] = field(default_factory=dict)

    def begin(self) -> None:
        for name in (*WORKERS, *BEATS):
            self.start(name)
        for process in self.running.values():
            self.platform.wait_ready(process)

    def start(self, name: str) -> None:
        queues = WORKERS.get(name)
        if queues:
            self.running[name] = self.platform.worker(name, queues=queues, wait=False, **ALLOW)
        else:
            self.running[name] = self.platform.start(name, "-m", "celery", "-A", "worker.app", "beat", "-l", "INFO")

    def fault(self) -> None:
        """Kill something, and start it again a moment later."""
        pause = self.dice.uniform(0.3, 3.0)
        what = self.dice.choice(("checks-1", "checks-2", "control", "beat-1", "beat-2", "broker", "database"))
        stack = self.platform.stack
        match what:
            case "broker":
                stack.valkey.kill()
                time.sleep(pause)
                stack.valkey.start()
            case "database":
                self.dice.choice((stack.postgres.kill, stack.postgres.stop))()
                time.sleep(pause)
                stack.postgres.start()
            case name:
                self.running[name].kill()
                time.sleep(pause)
                self.start(name)
        self.faults[what] += 1

    def rage(self, end: float) -> None:
        """Faults until this time, some seconds apart; whatever has ended by itself is a finding."""
        while (pause := self.dice.uniform(2.0, 7.0)) < end - time.time():
            time.sleep(pause)
            self.fault()
        for name, process in self.running.items():
            if not process.is_alive:
                self.faults[f"{name} ENDED BY ITSELF"] += 1

    def rows(self, statement: str) -> list[dict[str, Any]]:
        """Patient: the database may be away."""

        def ask() -> list[dict[str, Any]] | None:
            try:
                return [{}, *self.platform.rows(statement)]
            except psycopg.OperationalError:
                return None

        return list(until(ask, "the database answers"))[1:]

    def is_settled(self) -> bool:
        """All is over and told of; or nothing more is to be expected."""
        left = self.rows(
            """SELECT (SELECT count(*) FROM monitoring_alerts WHERE alert_type = 'check_down'
                AND (status <> 'resolved' OR settled_at IS NULL))
              + (SELECT count(*) FROM notifications WHERE state NOT IN ('sent', 'failed'))
              + (SELECT count(*) FROM check_states WHERE state <> 'up') AS left"""
        )
        return bool(left[0]["left"] == 0)

    def alerts(self) -> list[truth.Alert]:
        rows = self.rows(
            """SELECT a.id, c.name, extract(epoch FROM r.at)::float8 AS seen,
              extract(epoch FROM a.resolved_at)::float8 AS resolved
            FROM monitoring_alerts a JOIN monitoring_checks c ON a.fingerprint = 'check_down:' || c.id
            LEFT JOIN LATERAL (SELECT max(at) AS at FROM check_results
              WHERE check_id = c.id AND status = 'down' AND at <= a.started_at) r ON true ORDER BY a.id"""
        )
        return [truth.Alert(row["id"], int(row["name"]), row["seen"] or 0.0, row["resolved"]) for row in rows]

    def downs(self) -> list[truth.Run]:
        rows = self.rows(
            """SELECT c.name, extract(epoch FROM r.at)::float8 AS at, coalesce(r.message, '') AS message
            FROM check_results r JOIN monitoring_checks c ON c.id = r.check_id WHERE r.status = 'down' ORDER BY r.at"""
        )
        return [truth.Run(int(row["name"]), row["at"], row["message"]) for row in rows]


@contextmanager
def chaos(seed: int) -> Iterator[Chaos]:
    with ExitStack() as open_:
        database = open_.enter_context(migrated_database())
        environment = {
            "DATABASE_URL": database.url, "OPS_DATABASE_OWNER_URL": database.owner_url,
            "OPS_BROKER_URL": database.stack.broker_url, "ENCRYPTION_KEY": new_key(), "SECRET_KEY": "s" * 40,
        }  # fmt: skip
        open_.enter_context(settings_from(environment))
        yield Chaos(open_.enter_context(running_platform(database.stack, database)), random.Random(seed))


def add_all(url: str) -> None:
    """The checks, and two channels that are told when one is down."""
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("ann", "ann@example.org")
        for number in range(SITES):
            service.add_check(
                str(number), "http", user.id, config={"url": f"{url}/site/{number}"}, interval_seconds=5,
                retry_seconds=1, failure_threshold=2, success_threshold=2, timeout_seconds=4,
            )  # fmt: skip
        for name, route in CHANNELS.items():
            config = {"url": f"{url}/told/{name}", "secret": "s" * 20}
            made = channels.add(session, name=name, kind="webhook", config=config, rate_limit=1000)
            channels.add_route(session, channel=made, matchers={"alert_type": "check_down"}, **route)


def run(seconds: float, seed: int) -> bool:
    """One run; True: all promises were kept."""
    print(f"chaos: {SITES} checks for {seconds:.0f} s and until all is over; CHAOS_SEED={seed}", flush=True)
    with chaos(seed) as made:
        script = made.platform.folder / "script.json"
        farm = made.platform.start("farm", "-m", "tests.chaos.farm", str(script))
        url = f"http://127.0.0.1:{int(until(lambda: farm.text, 'the farm serves'))}"
        add_all(url)
        made.begin()
        until(lambda: made.rows("SELECT count(*) AS n FROM check_states WHERE state = 'up'")[0]["n"] == SITES, "all up")
        begin = time.time()
        intervals = truth.script(SITES, begin, seconds, seed)
        partial = script.with_suffix(".part")
        partial.write_text(json.dumps(intervals))
        partial.rename(script)
        made.rage(begin + seconds)
        time.sleep(max(0.0, max(end for each in intervals for _, end in each) - time.time()))
        end = time.time() + SETTLE_SECONDS
        while not made.is_settled() and time.time() < end:
            time.sleep(1)
        report = requests.get(f"{url}/report", timeout=10).json()
        lines = truth.judge(intervals, made.alerts(), report["messages"], len(CHANNELS))
        seen = [report["refused"].get(f"{n}/{i}", 0) for n, each in enumerate(intervals) for i in range(len(each))]
        of_runs, invented = truth.judge_runs(intervals, made.downs())
        lines += of_runs
        show(made, lines, min(seen, default=0), time.time() - begin)
        if report["stood_still"]:
            print("  the farm itself stood still, from and for seconds:", report["stood_still"])
        for run in invented[:10]:
            print(
                "  invented:",
                run,
                [
                    each
                    for each in requests.get(f"{url}/log/{run.site}", timeout=10).json()
                    if abs(each[0] - run.claimed_at) < 40
                ],
            )
        kept = all(line.is_kept for line in lines) and not any("ENDED" in each for each in made.faults)
        if not kept:
            explain(made, intervals)
        return kept


def show(made: Chaos, lines: list[truth.Line], fewest: int, seconds: float) -> None:
    print(f"\n{'killed and started again':<52}")
    for name, count in sorted(made.faults.items()):
        print(f"  {name:<50} {count:8}")
    told = {row["action"]: row["n"] for row in made.rows("SELECT action, count(*) AS n FROM audit_logs GROUP BY 1")}
    print(f"  {'batches of checks that never came back':<50} {told.get('check.batch_lost', 0):8}")
    print(f"  {'fewest answers of a site in a down interval':<50} {fewest:8}")
    print(f"\n{'after ' + format(seconds, '.0f') + ' s':<52} {'found':>8} {'wanted':>8}")
    for line in lines:
        wanted = "" if line.wanted is None else line.wanted
        print(f"  {line.name:<50} {line.found:>8} {wanted:>8} {'' if line.is_kept else '  BROKEN'}")


def explain(made: Chaos, intervals: truth.Truth) -> None:
    """What to look at, of a run that broke a promise."""
    alerts = made.alerts()
    odd = [n for n, each in enumerate(intervals) if len(each) != sum(alert.site == n for alert in alerts)]
    for site in odd[:3]:
        print(f"\nsite {site}: down {[tuple(round(t, 1) for t in each) for each in intervals[site]]}")
        print(f"  alerts {[alert for alert in alerts if alert.site == site]}")
        for table, columns in (("check_intervals", "state, started_at, ended_at"), ("check_results", "at, status")):
            time_column = "started_at" if table == "check_intervals" else "at"
            rows = made.rows(
                f"""SELECT {columns} FROM {table} WHERE check_id =
                (SELECT id FROM monitoring_checks WHERE name = '{site}') ORDER BY {time_column}"""
            )
            print(f"  {table}", *(" ".join(map(str, row.values())) for row in rows[-60:]), sep="\n    ")
    states = made.rows("SELECT state, count(*) AS n FROM notifications GROUP BY 1")
    print("notifications:", {row["state"]: row["n"] for row in states})


def main() -> int:
    seconds = float(os.environ.get("CHAOS_SECONDS", "300"))
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    kept = run(seconds, seed)
    print("chaos: all promises were kept" if kept else f"chaos: BROKEN; CHAOS_SEED={seed} does the same again")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
