"""The past of checks: hours and days that add up, uptime that counts what is known, and nothing kept for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.histograms import BUCKETS, bucket, percentile, upper
from db.repositories import CheckHistoryRepository
from db.services import check_history, checks
from db.states import CheckState
from worker.servers import OWNER_ROLE


@pytest.fixture
def site(session, anna):
    made = checks.add(session, owner_id=anna.id, name="site", kind="http", config={"url": "http://example.org"})
    session.commit()
    return made


@pytest.fixture
def owner(database):
    with database.connect(OWNER_ROLE) as connection:
        yield connection.execute


def fill(owner, check_id: int, hour: datetime, rows: list[tuple]) -> None:
    """Results in one hour, whose day gets a partition."""
    day = hour.date()
    owner(f"CREATE TABLE IF NOT EXISTS check_results_{day:%Y_%m_%d} PARTITION OF check_results "
          f"FOR VALUES FROM ('{day}T00:00Z') TO ('{day + timedelta(days=1)}T00:00Z')")  # fmt: skip
    for number, (status, latency, facts) in enumerate(rows):
        owner(
            "INSERT INTO check_results (check_id, at, status, latency_seconds, facts) VALUES (%s, %s, %s, %s, %s)",
            [check_id, hour + timedelta(seconds=number), status, latency, facts],
        )


@given(st.floats(1e-7, 1e4))
def test_every_duration_has_the_bucket_that_holds_it(seconds):
    index = bucket(seconds)
    assert 0 <= index < BUCKETS
    assert seconds <= upper(index) * 1.000001 or index == BUCKETS - 1
    assert index == 0 or seconds > upper(index - 1) * 0.999999


@given(st.lists(st.floats(0.001, 50), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentiles_are_off_by_a_bucket_at_most_however_the_parts_are_merged(durations, share):
    histogram = [0] * BUCKETS
    for seconds in durations:
        histogram[bucket(seconds)] += 1
    ordered = sorted(durations)
    true = ordered[max(0, -(-int(share * len(ordered) * 1e9) // 10**9) - 1)]
    assert abs(bucket(percentile(histogram, share)) - bucket(true)) <= 1
    assert percentile([0] * BUCKETS, share) is None


def test_hours_and_days_add_up_once_and_again(session, owner, site, sql):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
    hour = hour.replace(hour=3)
    latencies = [0.0005, 0.001, 0.00126, 0.5, 3.0, 59.0]
    fill(owner, site.id, hour, [
        *(("up", latency, None) for latency in latencies), ("degraded", 0.2, None), ("down", 5.0, None),
        ("unknown", None, None), ("missed", None, '{"missed": 4}'),
    ])  # fmt: skip
    fill(owner, site.id, hour + timedelta(hours=2), [("up", 0.5, None)])
    for _ in range(2):
        check_history.tidy(session)
        session.commit()
        sql("DELETE FROM check_rollups WHERE span = 'day'")
    expected = [0] * BUCKETS
    for seconds in [*latencies, 0.2]:
        expected[bucket(seconds)] += 1
    rows = sql("SELECT span, count, downs, degraded, unknowns, missed, histogram FROM check_rollups ORDER BY starts_at")
    assert rows[0] == ("hour", 8, 1, 1, 1, 4, expected)
    assert rows[1][:6] == ("hour", 1, 0, 0, 0, 0)
    check_history.tidy(session)
    session.commit()
    ((count, histogram),) = sql("SELECT count, histogram FROM check_rollups WHERE span = 'day'")
    expected[bucket(0.5)] += 1
    assert (count, histogram) == (9, expected)
    assert check_history.tidy(session)["check_rollups"] == 0


def test_uptime_leaves_out_what_was_paused_or_unknown(session, site, sql):
    now = datetime.now(UTC)
    sql("DELETE FROM check_intervals")
    for state, start, end in (
        ("up", 10, 6), ("down", 6, 5), ("paused", 5, 4), ("unknown", 4, 3), ("degraded", 3, 1), ("up", 1, None),
    ):  # fmt: skip
        sql(
            "INSERT INTO check_intervals (check_id, state, started_at, ended_at) VALUES (%s, %s, %s, %s)",
            site.id, state, now - timedelta(hours=start), None if end is None else now - timedelta(hours=end),
        )  # fmt: skip
    history = CheckHistoryRepository(session)
    whole = history.uptime([site.id], since=now - timedelta(days=1), until=now)[site.id]
    assert whole.share == pytest.approx(7 / 8)
    assert whole.seconds[CheckState.UNKNOWN] == pytest.approx(3600)
    part = history.uptime([site.id], since=now - timedelta(hours=5.5), until=now - timedelta(hours=2))[site.id]
    assert part.share == pytest.approx(1 / 1.5)
    assert [each.state for each in history.incidents([site.id], since=now - timedelta(hours=5.2))] == [CheckState.DOWN]
    assert history.incidents([site.id], since=now - timedelta(hours=4)) == []


def test_days_are_dropped_after_their_time_and_never_before_two(session, owner, site, database, sql):
    old = datetime.now(UTC) - timedelta(days=8)
    fill(owner, site.id, old, [("up", 0.1, None)])
    assert check_history.tidy(session)["check_partitions_dropped"] >= 1
    session.commit()
    assert sql("SELECT count(*) FROM check_results") == [(0,)]
    with pytest.raises(psycopg.errors.RaiseException, match="at least 2 days"):
        sql("SELECT ops_checks_drop_partitions(1)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        sql(f"DROP TABLE check_results_{datetime.now(UTC):%Y_%m_%d}")


def test_partitions_are_made_ahead_and_hours_and_intervals_go_after_their_time(session, owner, site, sql):
    ahead = f"check_results_{datetime.now(UTC) + timedelta(days=6):%Y_%m_%d}"
    owner(f"DROP TABLE {ahead}")
    sql("INSERT INTO check_intervals (check_id, state, started_at, ended_at) VALUES (%s, 'up', now() - interval '3 y', "
        "now() - interval '3 y')", site.id)  # fmt: skip
    sql("INSERT INTO check_rollups SELECT %s, span, now() - interval '3 y', 1, 0, 0, 0, 0, '{}' "
        "FROM unnest('{hour,day}'::text[]) span", site.id)  # fmt: skip
    done = check_history.tidy(session)
    session.commit()
    assert done["check_partitions_made"] == 1
    assert (done["check_hours_removed"], done["check_days_removed"], done["check_intervals_removed"]) == (1, 1, 1)
    assert owner(f"SELECT count(*) FROM {ahead}").fetchone() == (0,)


def test_a_removed_check_takes_its_history_along(session, site, sql):
    checks.remove(session, found=site)
    session.commit()
    for table in ("check_states", "check_intervals", "check_rollups", "monitoring_checks"):
        assert sql(f"SELECT count(*) FROM {table}") == [(0,)]
