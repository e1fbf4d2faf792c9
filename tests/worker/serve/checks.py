"""Checks with a past, written behind the platform's back: what a page of them must say is known."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from db.histograms import BUCKETS, bucket
from tests.conftest import Database

SECRET = "secret-host.internal"


@dataclass
class Past:
    """One check. ``lost``: (state, days ago at which it began, its length in hours); ``since``: days."""

    name: str
    state: str = "up"
    since: float = 89.5
    lost: list[tuple[str, float, float]] = field(default_factory=list)
    public: bool = True
    group: str | None = None
    latency: float | None = 0.08
    late: bool = False
    blinds: int = 0


def write(database: Database, pasts: list[Past]) -> None:
    """Add these checks to a database without any."""
    with database.connect("postgres") as root:
        root.execute("SET session_replication_role = replica")
        root.execute("INSERT INTO users (username, email) VALUES ('ann', 'ann@example.org') ON CONFLICT DO NOTHING")
        now = datetime.now(UTC)
        for past in pasts:
            _write(root, past, now)
        root.execute("ANALYZE monitoring_checks, check_states, check_intervals, check_rollups")


def _write(root: psycopg.Connection, past: Past, now: datetime) -> None:
    labels = {"host": SECRET, "group": past.group} if past.group else {"host": SECRET}
    config = {"url": f"https://{SECRET}/private"}
    (check_id,) = _row(
        root,
        """INSERT INTO monitoring_checks (name, kind, config, labels, public, owner_id, paused_at)
        VALUES (%s, 'http', %s, %s, %s, (SELECT min(id) FROM users), %s) RETURNING id""",
        past.name, json.dumps(config), json.dumps(labels), past.public, now if past.state == "paused" else None,
    )  # fmt: skip
    due = None if past.state == "paused" else now + timedelta(minutes=-30 if past.late else 1)
    root.execute(
        """INSERT INTO check_states
        (check_id, state, since_at, next_run_at, last_run_at, last_message, blinds, blind_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s)""",
        [check_id, past.state, now, due, now, f"connection to {SECRET} refused", past.blinds,
         now if past.blinds else None],
    )  # fmt: skip
    at = now - timedelta(days=past.since)
    for state, ago, hours in sorted(past.lost, key=lambda each: -each[1]):
        begins = now - timedelta(days=ago)
        _interval(root, check_id, "up", at, begins)
        at = begins + timedelta(hours=hours)
        _interval(root, check_id, state, begins, at)
    _interval(root, check_id, past.state, at, None)
    if past.latency is not None:
        hour = now.replace(minute=0, second=0, microsecond=0)
        for n in range(1, 48):
            histogram = [0] * BUCKETS
            histogram[bucket(past.latency * (1 + (n * 7 + check_id * 3) % 11 / 12))] = 60
            root.execute(
                "INSERT INTO check_rollups"
                " (check_id, span, starts_at, count, downs, degraded, unknowns, missed, histogram)"
                " VALUES (%s, 'hour', %s, 60, 0, 0, 0, 0, %s)",
                [check_id, hour - timedelta(hours=n), histogram],
            )


def _interval(root: psycopg.Connection, check_id: int, state: str, begin: datetime, end: datetime | None) -> None:
    root.execute(
        "INSERT INTO check_intervals (check_id, state, started_at, ended_at) VALUES (%s, %s, %s, %s)",
        [check_id, state, begin, end],
    )


def _row(root: psycopg.Connection, statement: str, *given: Any) -> tuple[Any, ...]:
    row = root.execute(statement, given).fetchone()
    assert row is not None
    return row


def many(count: int) -> list[Past]:
    """As a large installation has them."""
    return [
        Past(
            f"service {n:04}", group=f"region {n % 8}", latency=None,
            lost=[("down", 3 + n % 80, 2.0)] if n % 17 == 0 else [],
            state="down" if n % 701 == 7 else "up",
        )
        for n in range(count)
    ]  # fmt: skip


MIXED = [
    Past("Website", group="Customers", lost=[("down", 12.3, 0.7), ("degraded", 40, 5)]),
    Past("Checkout", "degraded", group="Customers", lost=[("down", 3.2, 0.2), ("down", 60, 30)], latency=0.42),
    Past("API", group="Customers", latency=0.03),
    Past("Nightly backup", "down", group="Back office", since=20, lost=[("down", 8, 3)], latency=None),
    Past("Mail", "paused", group="Back office", lost=[("unknown", 30, 48)], latency=1.4),
    Past("Search", group="Back office", blinds=5),
    Past("Internal ledger", public=False, group="Hidden"),
]
