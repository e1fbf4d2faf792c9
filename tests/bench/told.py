"""From the moment at which a site is down until somebody is told: real workers, a beat, and a receiver on loopback."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import requests

from db.connection import get_db_session
from db.service import DatabaseService
from db.services import channels
from tests.bench.report import Report, percentile
from tests.e2e.platform import Platform
from tests.e2e.process import until
from worker.schedule import TICKS

SITES = 100
#: As short as an interval may be; each site goes down at some moment of so many seconds.
INTERVAL_SECONDS, RETRY_SECONDS, FAILURES, SPREAD_SECONDS = 5, 1, 2, 30.0
ALLOW = {"OPS_PROBE_ALLOW": "127.0.0.1/32"}

# What the time was spent on, per check, in seconds since 1970.
_MOMENTS = """SELECT c.name, extract(epoch FROM a.started_at)::float8 AS known,
  extract(epoch FROM a.fired_at)::float8 AS fired, extract(epoch FROM n.queued_at)::float8 AS queued
FROM monitoring_alerts a JOIN monitoring_checks c ON a.fingerprint = 'check_down:' || c.id
JOIN notifications n ON n.alert_id = a.id AND n.transition = 'raised' WHERE c.name LIKE 'told-%%'"""


def from_down(bench: Platform, report: Report) -> None:
    """Print p50 and p99, and what they consist of."""
    ticks = ", ".join(f"{name} every {TICKS[name][1]:g} s" for name in ("checks", "alerts", "notifications"))
    report.section(
        f'from "down" until somebody is told: {SITES} sites asked every {INTERVAL_SECONDS} s, again after'
        f" {RETRY_SECONDS} s, down after {FAILURES}; ticks: {ticks}; no wait for others"
    )
    script = bench.folder / "told.json"
    farm = bench.start("farm", "-m", "tests.chaos.farm", str(script))
    workers = [bench.worker("told", queues="checks,control", **ALLOW), bench.beat()]
    try:
        url = f"http://127.0.0.1:{int(until(lambda: farm.text, 'the farm serves'))}"
        _add(url)
        until(lambda: _up(bench) == SITES, "all are up", 60)
        down = _script(script)
        until(lambda: len(_told(url)) == SITES, "all are told of", 120)
        _say(report, down, _told(url), bench.rows(_MOMENTS))
    finally:
        for process in (*workers, farm):
            process.kill()


def _add(url: str) -> None:
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("told", "told@example.org")
        for number in range(SITES):
            service.add_check(
                f"told-{number}", "http", user.id, config={"url": f"{url}/site/{number}"},
                interval_seconds=INTERVAL_SECONDS, retry_seconds=RETRY_SECONDS, failure_threshold=FAILURES,
            )  # fmt: skip
        config = {"url": f"{url}/told/sink", "secret": "s" * 20}
        made = channels.add(session, name="told", kind="webhook", config=config, rate_limit=1000)
        channels.add_route(
            session, channel=made, matchers={"alert_type": "check_down"}, wait_seconds=0, group_by=["check"]
        )


def _up(bench: Platform) -> int:
    (row,) = bench.rows(
        """SELECT count(*) AS n FROM check_states s JOIN monitoring_checks c ON c.id = s.check_id
        WHERE c.name LIKE 'told-%%' AND s.state = 'up'"""
    )
    return int(row["n"])


def _script(path: Any) -> list[float]:
    """When each site goes down, and stays so."""
    dice, now = random.Random(7), time.time()
    down = [now + 2 + dice.uniform(0, SPREAD_SECONDS) for _ in range(SITES)]
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps([[[start, start + 3600]] for start in down]))
    partial.rename(path)
    return down


def _told(url: str) -> dict[str, float]:
    """When somebody was told of each check."""
    messages = requests.get(f"{url}/report", timeout=10).json()["messages"]
    return {
        alert["labels"]["check"]: message["at"]
        for message in messages for alert in message["alerts"] if alert["transition"] == "raised"
    }  # fmt: skip


def _say(report: Report, down: Sequence[float], told: dict[str, float], rows: list[dict[str, Any]]) -> None:
    took = [told[f"told-{number}"] - start for number, start in enumerate(down)]
    report.figure("down to told, p50 and p99", f"{percentile(took, 0.5):.1f} s, {percentile(took, 0.99):.1f} s")
    parts: dict[str, list[float]] = {
        "until it is known: interval, retry, batch": [r["known"] - down[int(r["name"][5:])] for r in rows],
        "until an alert fires: the next look": [r["fired"] - r["known"] for r in rows],
        "until there is a message: the next dispatch": [r["queued"] - r["fired"] for r in rows],
        "until it is out: a durable job": [told[r["name"]] - r["queued"] for r in rows],
    }
    for name, each in parts.items():
        report.figure(f"  {name}", f"{percentile(each, 0.5):.2f} s, {percentile(each, 0.99):.2f} s")
