"""The machines of checks and alerts together, against the model: as the platform runs them, on the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from sqlalchemy import select, text

from db import connection
from db.connection import get_db_session
from db.models import MonitoringAlert, Notification, User
from db.probes import Seen
from db.repositories import TickRepository
from db.services import channels, check_runs, checks, evaluation, notifications, outages, users
from db.states import AlertStatus, CheckStatus
from tests.conftest import SCHEMA
from tests.db.monitored import CHECKS, FAILURES, SUCCESSES, check, happenings

#: Every time that a decision may go by, as a clock that was set makes it.
TIMES = {
    "check_states": ("since_at", "blind_at", "scheduled_at", "last_run_at", "next_run_at"),
    "check_intervals": ("started_at", "ended_at"),
    "ticks": ("last_run_at", "last_success_at"),
    "monitoring_alerts": ("started_at", "fired_at", "resolved_at", "cleared_at", "settled_at"),
    "notifications": ("due_at", "created_at", "queued_at"),
}
Claimed = tuple[dict[UUID, list[int]], dict[UUID, list[check_runs.Run]]]


class Platform:
    """What beats and workers do, step by step, each in transactions of its own."""

    def __init__(self) -> None:
        with get_db_session() as session:
            for table in ("ticks", "notifications", "monitoring_alerts", "notification_channels", "monitoring_checks"):
                session.execute(text(f"DELETE FROM {SCHEMA}.{table}"))
            owner = session.scalars(select(User)).first() or users.create(session, username="o", email="o@example.org")
            self.ids = [
                checks.add(
                    session, owner_id=owner.id, name=f"c{number}", kind="http", config={"url": "http://example.org/"},
                    failure_threshold=FAILURES, success_threshold=SUCCESSES,
                ).id
                for number in range(CHECKS)
            ]  # fmt: skip
            told = channels.add(
                session, name="sink", kind="webhook", config={"url": "http://example.org/", "secret": "s" * 20},
                rate_limit=1000,
            )  # fmt: skip
            channels.add_route(session, channel=told, wait_seconds=0, matchers={"alert_type": "check_down"})

    def claim(self) -> Claimed:
        self._run("UPDATE {s}.check_states SET next_run_at = statement_timestamp() - interval '1 ms'")
        with get_db_session() as session:
            batches = check_runs.claim(session)
        assert sum(map(len, batches.values())) == CHECKS
        with get_db_session() as session:
            return batches, {
                batch: check_runs.load(session, batch_id=batch, check_ids=ids) for batch, ids in batches.items()
            }

    def record(self, claimed: Claimed, seen: list[str]) -> None:
        saw = {check_id: Seen(CheckStatus(each), 0.1) for check_id, each in zip(self.ids, seen, strict=True)}
        for batch, runs in claimed[1].items():
            with get_db_session() as session:
                check_runs.record(session, batch_id=batch, runs=runs, seen=saw)

    def look(self, *, cut: bool = False) -> None:
        self._act("alerts", lambda session: evaluation.evaluate(session, [outages.observe]), cut)

    def dispatch(self, *, cut: bool = False) -> None:
        self._act("notifications", notifications.dispatch, cut)

    def restart(self) -> None:
        connection.dispose()

    def jump(self, seconds: int) -> None:
        """The clock goes on by so many seconds: what was written is so much older, or lies in the future."""
        for table, columns in TIMES.items():
            moved = ", ".join(f"{each} = {each} - interval '{seconds} s'" for each in columns)
            self._run(f"UPDATE {{s}}.{table} SET {moved}")

    def alerts(self, check: int) -> list[bool]:
        return [each.status is AlertStatus.FIRING for each in self._alerts(check)]

    def told(self, check: int) -> list[tuple[int, str]]:
        places = {alert.id: place for place, alert in enumerate(self._alerts(check))}
        with get_db_session() as session:
            rows = session.scalars(
                select(Notification).where(Notification.alert_id.in_(places)).order_by(Notification.id)
            ).all()
            assert all(row.state == "queued" and row.job_id is not None for row in rows)
            return [(places[row.alert_id], row.transition.value) for row in rows]

    def _alerts(self, check: int) -> Sequence[MonitoringAlert]:
        with get_db_session() as session:
            query = select(MonitoringAlert).where(MonitoringAlert.fingerprint == f"check_down:{self.ids[check]}")
            return session.scalars(query.order_by(MonitoringAlert.id)).all()

    @staticmethod
    def _run(statement: str) -> None:
        with get_db_session() as session:
            session.execute(text(statement.format(s=SCHEMA)))

    @staticmethod
    def _act(name: str, work: Any, cut: bool) -> None:
        """As a tick does it; ``cut``: its transaction is rolled back."""
        with get_db_session() as session:
            TickRepository(session).due(name, timedelta(0))
        with get_db_session() as session:
            changed = work(session)
            TickRepository(session).done(name, changed)
            if cut:
                session.rollback()


#: Down and up again after the clock was set back, and nobody looked meanwhile: seen by the second look from then on.
UNSEEN = [
    ("run", ["up"] * CHECKS), ("look",), ("jump", -600), *[("run", ["down"] * CHECKS)] * FAILURES,
    *[("run", ["up"] * CHECKS)] * SUCCESSES,
]  # fmt: skip


@example(UNSEEN)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings)
def test_checks_and_alerts_together_are_the_truth(database, history):
    check(Platform(), history)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings)
def test_the_same_in_many_histories(database, history):
    check(Platform(), history)
