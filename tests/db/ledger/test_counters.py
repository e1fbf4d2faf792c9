"""What has happened is counted once, whoever counts and however often, and only ever grows."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

from db.connection import get_db_session
from db.repositories import counters
from db.repositories.counters import CounterRepository
from db.services import metrics
from tests.db.ledger.conftest import TASK, Crowd, Jobs

Counts = dict[tuple[str, str, str], int]


def count_all() -> int:
    """As the tick does, without its interval."""
    counted = 0
    while True:
        with get_db_session() as session:
            round_ = metrics.count_next(session)
        counted += round_
        if round_ < metrics.BATCH:
            return counted


def read() -> Counts:
    """How often, by name, label and word."""
    found: Counts = {}
    with get_db_session(read_only=True) as session:
        for row in CounterRepository(session).list_():
            key = (row.name, row.label, row.word)
            found[key] = found.get(key, 0) + row.count
    return found


def grown(before: Counts) -> Counts:
    return {key: count - before.get(key, 0) for key, count in read().items() if count != before.get(key, 0)}


@pytest.fixture
def before(jobs: Jobs, owner: psycopg.Connection) -> Counts:
    """What was counted before; everything up to here is."""
    count_all()
    return read()


def test_each_job_is_counted_where_it_starts_and_ends(jobs: Jobs, before: Counts):
    held = jobs.take_and_begin(jobs.add())
    jobs.finish(held)
    jobs.finish(jobs.take_and_begin(jobs.add(max_attempts=1)), "failed", error="no")
    jobs.ledger.cancel(jobs.add())
    count_all()
    found = grown(before)
    assert found["jobs_enqueued", TASK, ""] == 3
    assert found["job_wait", TASK, ""] == 2
    assert found["job_duration", TASK, "succeeded"] == 1
    assert {word: found["jobs_finished", TASK, word] for word in ("succeeded", "failed", "cancelled")} == {
        "succeeded": 1, "failed": 1, "cancelled": 1,
    }  # fmt: skip
    assert found["audit_entries", "job.enqueued", ""] == 3


def test_nothing_is_counted_twice_and_what_is_removed_stays_counted(jobs: Jobs, before: Counts, owner):
    jobs.finish(jobs.take_and_begin(jobs.add()))
    assert count_all() >= 3
    first = read()
    assert count_all() == 0
    assert read() == first
    owner.execute("DELETE FROM jobs")
    count_all()
    found = read()
    assert all(found[key] >= count for key, count in first.items())
    assert found["jobs_finished", TASK, "succeeded"] == first["jobs_finished", TASK, "succeeded"]


def test_what_an_open_transaction_wrote_before_others_is_counted_once_it_ends(jobs: Jobs, before: Counts, crowd: Crowd):
    """An entry that commits after later ones is not passed over."""
    with crowd.transaction() as slow:
        slow.execute("SELECT ops_audit('slow.thing', 'thing', '1')")
        jobs.app.execute("SELECT ops_audit('fast.thing', 'thing', '1')")
        count_all()
        assert ("audit_entries", "fast.thing", "") not in grown(before)
        slow.commit()
    count_all()
    found = grown(before)
    assert (found["audit_entries", "slow.thing", ""], found["audit_entries", "fast.thing", ""]) == (1, 1)


def test_of_two_that_count_at_once_one_does(jobs: Jobs, before: Counts, crowd: Crowd):
    jobs.app.execute("SELECT ops_audit('some.thing', 'thing', '1')")
    with crowd.transaction() as other:
        other.execute("SELECT FROM counter_position FOR UPDATE")
        assert count_all() == 0
        other.rollback()
    assert count_all() == 1
    assert grown(before)["audit_entries", "some.thing", ""] == 1


def test_forged_entries_neither_stop_the_count_nor_make_it_fall(jobs: Jobs, before: Counts):
    """Whoever runs the platform may write entries of any form."""
    for details in ({"waited_seconds": "soon"}, {"waited_seconds": -5}, {"task": 7, "waited_seconds": {}}, [], 5):
        jobs.app.execute("SELECT ops_audit('job.started', 'job', 'x', NULL, %s)", [Jsonb(details)])
    jobs.app.execute("""SELECT ops_audit('job.started', 'job', 'x', NULL, '{"waited_seconds": 1e4000}')""")
    jobs.app.execute("""SELECT ops_audit('user.login_throttled', 'user', 'x', NULL, '{"refused": -7}')""")
    assert count_all() == 7
    assert all(count > 0 for count in grown(before).values())
    with get_db_session() as session:
        assert all(0 <= row.total < 1e10 for row in CounterRepository(session).list_())


def test_endless_names_are_counted_under_one(jobs: Jobs, before: Counts):
    """A series lives for ever in whatever stores it."""
    names = counters.MOST_LABELS + 50
    jobs.app.execute("SELECT ops_audit('made.up' || n, 'thing', '1') FROM generate_series(1, %s) n", [names])
    count_all()
    found = grown(before)
    entries = {label: count for (name, label, _), count in found.items() if name == "audit_entries"}
    assert entries[counters.OTHER] >= 50
    assert sum(entries.values()) == names
    assert sum(1 for name, _, _ in read() if name == "audit_entries") <= counters.MOST_LABELS + 1
    jobs.app.execute("SELECT ops_audit('made.up.later', 'thing', '1')")
    count_all()
    assert ("audit_entries", "made.up.later", "") not in read()


def test_after_a_restore_into_another_cluster_counting_goes_on(jobs: Jobs, before: Counts, owner: psycopg.Connection):
    owner.execute("UPDATE counter_position SET xid = '9000000000'")
    count_all()
    jobs.app.execute("SELECT ops_audit('after.restore', 'thing', '1')")
    count_all()
    assert sum(grown(before).values()) == 1


def test_how_long_a_notification_waited_is_counted_once_it_is_sent(jobs: Jobs, before: Counts, owner):
    owner.execute("""INSERT INTO notification_channels (name, kind, encrypted_config) VALUES ('mail', 'smtp', 'x')""")
    owner.execute(
        """INSERT INTO monitoring_alerts (fingerprint, alert_type, severity, title, fired_at)
        VALUES ('x', 'x', 'high', 'x', now())"""
    )
    owner.execute(
        """INSERT INTO notifications (alert_id, channel_id, transition, group_key, due_at, created_at)
        SELECT a.id, c.id, 'raised', 'x', now(), now() - interval '40 s'
        FROM monitoring_alerts a, notification_channels c"""
    )
    count_all()
    assert ("notification_dwell", "", "sent") not in grown(before)
    owner.execute("UPDATE notifications SET state = 'sent', queued_at = now(), finished_at = now()")
    jobs.app.execute("SELECT ops_audit('notification.updated', 'notification', 'x', '{\"finished_at\": 5}')")
    count_all()
    assert grown(before)["notification_dwell", "", "sent"] == 1
    with get_db_session() as session:
        (row,) = [row for row in CounterRepository(session).list_() if row.name == "notification_dwell"]
    assert (row.upto, round(row.total)) == (60.0, 40)
