"""Checks: what people may change, what a run may, and what no late one can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from db.errors import AlreadyExists, Conflict, InvalidInput, NotFound, PermissionDenied
from db.models import CheckStanding, MonitoringCheck, User
from db.probes import Seen
from db.services import check_runs, checks, secrets
from db.services.check_runs import Run
from db.states import CheckState, CheckStatus
from tests.db.services.conftest import one_line

Add = Callable[..., MonitoringCheck]
SITE = {"url": "http://example.org/"}


@pytest.fixture
def add(session: Session, anna: User) -> Add:
    def make(name: str = "site", kind: str = "http", config: dict[str, Any] | None = None, **values: Any):
        made = checks.add(
            session, owner_id=anna.id, name=name, kind=kind, config=SITE if config is None else config, **values
        )
        session.commit()
        return made

    return make


def claim(session: Session) -> dict[UUID, list[int]]:
    claimed = check_runs.claim(session)
    session.commit()
    return claimed


def make_due(session: Session, check: MonitoringCheck, **values: Any) -> None:
    from sqlalchemy import func

    session.execute(
        update(CheckStanding).where(CheckStanding.check_id == check.id).values(next_run_at=func.now(), **values)
    )
    session.commit()


def load(session: Session, claimed: dict[UUID, list[int]]) -> tuple[UUID, list[Run]]:
    ((batch, ids),) = claimed.items()
    runs = check_runs.load(session, batch_id=batch, check_ids=ids)
    session.commit()
    return batch, runs


def record(session: Session, batch: UUID, runs: Sequence[Run], status: CheckStatus, **seen: Any) -> dict[str, Any]:
    counts = check_runs.record(
        session, batch_id=batch, runs=runs, seen={run.check_id: Seen(status, **seen) for run in runs}
    )
    session.commit()
    return counts


def run(session: Session, check: MonitoringCheck, status: CheckStatus, **seen: Any) -> dict[str, Any]:
    """One whole run that sees this."""
    make_due(session, check)
    batch, runs = load(session, claim(session))
    return record(session, batch, runs, status, **seen)


def standing(session: Session, check: MonitoringCheck) -> CheckStanding:
    found = session.get(CheckStanding, check.id, populate_existing=True)
    assert found is not None
    return found


def intervals(sql, check: MonitoringCheck) -> list[str]:
    rows = sql("SELECT state, ended_at FROM check_intervals WHERE check_id = %s ORDER BY id", check.id)
    assert [ended is None for _, ended in rows] == [False] * (len(rows) - 1) + [True]
    return [state for state, _ in rows]


def test_a_new_check_is_due_and_runs_once(session, add):
    site = add()
    claimed = claim(session)
    assert list(claimed.values()) == [[site.id]]
    assert claim(session) == {}


def test_results_move_the_state_and_its_interval_together(session, add, sql):
    site = add()
    assert run(session, site, CheckStatus.UP)["changed"] == {str(site.id): ["unknown", "up"]}
    for _ in range(2):
        assert "changed" not in run(session, site, CheckStatus.DOWN, message="connection refused")
    assert standing(session, site).state is CheckState.UP
    run(session, site, CheckStatus.DOWN, message="connection refused")
    found = standing(session, site)
    assert (found.state, found.last_message) == (CheckState.DOWN, "connection refused")
    assert intervals(sql, site) == ["unknown", "up", "down"]
    assert sql("SELECT status FROM check_results ORDER BY at") == [("up",), ("down",), ("down",), ("down",)]


def test_a_late_or_repeated_batch_changes_nothing(session, add, sql):
    site = add()
    batch, runs = load(session, claim(session))
    assert record(session, batch, runs, CheckStatus.UP) == {"up": 1, "changed": {str(site.id): ["unknown", "up"]}}
    assert record(session, batch, runs, CheckStatus.DOWN) == {"late": 1}
    assert check_runs.load(session, batch_id=batch, check_ids=[site.id]) == []
    assert sql("SELECT status FROM check_results") == [("up",)]


def test_a_message_that_is_repeated_while_its_batch_runs_starts_nothing(session, add, anna, sql):
    """Whoever reads the broker could have a target asked, and a secret opened, as often as he likes."""
    secrets.store(session, user_id=anna.id, service_name="site", key_name="token", value="s3cret-value")
    site = add(config=SITE | {"secret_headers": {"X-Token": "site/token"}}, failure_threshold=2)
    claimed = claim(session)
    batch, first = load(session, claimed)
    assert load(session, claimed) == (batch, [])
    assert len(sql("SELECT 1 FROM audit_logs WHERE action = 'secret.opened'")) == 1
    record(session, batch, first, CheckStatus.DOWN)
    assert standing(session, site).downs == 1


def test_a_result_under_the_name_of_the_message_does_not_count(session, add):
    site = add()
    batch, runs = load(session, claim(session))
    assert record(session, batch, [replace(runs[0], taken=batch)], CheckStatus.DOWN) == {"late": 1}
    assert standing(session, site).downs == 0


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 100_000])
def test_what_a_stranger_has_written_costs_no_other_check_its_result(session, add, sql, text):
    add("theirs")
    add("ours")
    batch, runs = load(session, claim(session))
    record(session, batch, runs, CheckStatus.UP, facts={"records": [text], "ratio": float("inf")})
    assert sql("SELECT status FROM check_results") == [("up",), ("up",)]
    assert sql("SELECT max(length(facts::text)) < 1000 FROM check_results") == [(True,)]


@pytest.mark.parametrize("what", ["pause", "edit"])
def test_what_was_under_way_when_a_check_was_paused_or_changed_counts_no_more(session, add, what):
    site = add()
    batch, runs = load(session, claim(session))
    if what == "pause":
        checks.pause(session, found=site)
    else:
        checks.edit(session, found=site, config={"url": "http://example.org/other"})
    session.commit()
    assert record(session, batch, runs, CheckStatus.DOWN) == {"late": 1}
    assert standing(session, site).state is (CheckState.PAUSED if what == "pause" else CheckState.UNKNOWN)


def test_a_batch_that_never_came_back_is_claimed_again_and_leaves_an_entry(session, add, sql):
    site = add()
    (lost,) = claim(session)
    make_due(session, site)
    (again,) = claim(session)
    assert again != lost
    assert sql("SELECT resource_id, details FROM audit_logs WHERE action = 'check.batch_lost'") == [
        (str(lost), {"checks": 1})
    ]
    assert sql("SELECT status, facts ->> 'missed' FROM check_results") == [("missed", "1")]
    assert standing(session, site).state is CheckState.UNKNOWN


def test_after_an_outage_of_our_own_runs_are_missed_and_nothing_is_down(session, add, sql):
    site = add(interval_seconds=60)
    run(session, site, CheckStatus.UP)
    sql("UPDATE check_intervals SET started_at = started_at - interval '2 h', ended_at = ended_at - interval '2 h'")
    sql("UPDATE check_states SET next_run_at = now() - interval '1 hour'")
    batch, runs = load(session, claim(session))
    record(session, batch, runs, CheckStatus.UP)
    assert sql("SELECT (facts ->> 'missed')::int FROM check_results WHERE status = 'missed'") == [(60,)]
    assert standing(session, site).state is CheckState.UP
    assert intervals(sql, site) == ["unknown", "up", "unknown", "up"]


def test_runs_of_equal_intervals_spread_and_keep_their_place(session, add, sql):
    made = [add(f"c{number}", interval_seconds=600) for number in range(8)]
    for _ in range(2):
        for check in made:
            run(session, check, CheckStatus.UP)
        places = [
            float(place)
            for (place,) in sql(
                "SELECT extract(epoch FROM next_run_at)::numeric % 600 FROM check_states ORDER BY check_id"
            )
        ]
        assert places == pytest.approx([check_runs.phase(check.id, 600) for check in made], abs=0.01)
    gaps = sorted(places)
    assert min(b - a for a, b in pairwise(gaps)) > 20


def test_a_failure_that_is_not_confirmed_is_looked_at_sooner(session, add, sql):
    site = add(interval_seconds=3600, retry_seconds=10)
    run(session, site, CheckStatus.UP)
    soon = "SELECT next_run_at < now() + interval '11 s' FROM check_states"
    seen = []
    for status in (CheckStatus.DOWN, CheckStatus.DOWN, CheckStatus.DOWN, CheckStatus.UNKNOWN):
        run(session, site, status)
        seen += sql(soon)
    assert seen == [(True,), (True,), (False,), (False,)]


def test_each_batch_leaves_one_entry_and_states_leave_none(session, add, sql):
    site = add()
    sql("SELECT 1")
    run(session, site, CheckStatus.UP)
    run(session, site, CheckStatus.DOWN)
    rows = sql("SELECT action, actor_type FROM audit_logs WHERE resource_type LIKE 'check%%' ORDER BY id")
    assert [action for action, _ in rows] == ["check.created", "check.batch", "check.batch"]


def test_settings_are_checked_when_they_are_saved(session, add, anna):
    for values, says in (
        ({"config": {"url": "ftp://x"}}, "config.url: an http or https address is needed"),
        ({"config": {}}, "config.url: Field required"),
        ({"config": SITE | {"status": "299-200"}}, "config.status: 299-200 ends before it begins"),
        ({"config": SITE | {"body_matches": "("}}, "config.body_matches: not a regular expression"),
        ({"config": SITE | {"headers": {"Host": "evil"}}}, "config.headers: Host is set by the client itself"),
        ({"kind": "ping", "config": {}}, "kind: Input should be"),
        ({"kind": "heartbeat", "config": {"cron": "61 * * * *"}}, "config.cron: not a cron line"),
        ({"interval_seconds": 1}, "interval_seconds: Input should be greater than or equal to 5"),
    ):
        with pytest.raises(InvalidInput) as refused:
            add("x", **values)
        assert one_line(refused).startswith(says)
    assert session.query(MonitoringCheck).count() == 0


def test_names_are_unique_and_kinds_stay(session, add):
    site = add("site")
    with pytest.raises(AlreadyExists):
        add("SITE")
    with pytest.raises(InvalidInput, match="the kind of a check stays"):
        checks.edit(session, found=site, kind="tcp")


def test_another_interval_keeps_the_state_and_another_target_does_not(session, add):
    site = add()
    run(session, site, CheckStatus.UP)
    assert checks.edit(session, found=site, interval_seconds=600).standing.state is CheckState.UP
    session.commit()
    assert len(claim(session)) == 1
    changed = checks.edit(session, found=site, config={"url": "http://example.org/other"})
    assert changed.standing.state is CheckState.UNKNOWN


def test_viewers_may_not_and_others_checks_are_not_theirs(session, add, person):
    site = add()
    with pytest.raises(PermissionDenied):
        checks.pause(session, found=site, actor=person("vic", "viewer"))
    with pytest.raises(PermissionDenied):
        # It would open anna's secrets, at an address of ben's choice.
        checks.edit(session, found=site, config={"url": "http://ben.example.org"}, actor=person("ben"))


def test_pausing_twice_and_running_a_paused_check_are_refused(session, add, sql):
    site = add()
    checks.pause(session, found=site)
    for wrong in (checks.pause, checks.run_now):
        with pytest.raises(Conflict):
            wrong(session, found=site)
    session.commit()
    assert claim(session) == {}
    checks.resume(session, found=site)
    session.commit()
    assert len(claim(session)) == 1
    assert intervals(sql, site) == ["unknown", "paused", "unknown"]


def test_a_secret_is_opened_once_a_batch_and_each_opening_is_recorded(session, add, anna, sql):
    secrets.store(session, user_id=anna.id, service_name="site", key_name="token", value="s3cret-value")
    for name in ("one", "two"):
        add(name, config=SITE | {"secret_headers": {"X-Token": "site/token"}})
    _, runs = load(session, claim(session))
    assert [run.plan.secrets for run in runs] == [{"header X-Token": "s3cret-value"}] * 2
    assert "s3cret" not in repr(runs)
    rows = sql("SELECT details ->> 'name' FROM audit_logs WHERE action = 'secret.opened'")
    assert rows == [("site/token",)]


def test_a_secret_that_is_missing_is_our_error(session, add):
    add(config=SITE | {"basic": {"user": "me", "secret": "no/such"}})
    _, runs = load(session, claim(session))
    assert (runs[0].plan, runs[0].problem) == (None, "there is no secret no/such")


def test_whoever_knows_a_heartbeats_token_may_report_and_nobody_else(session, add, sql):
    backup = add("backup", "heartbeat", {"period_seconds": 60, "grace_seconds": 10})
    assert claim(session) == {}, "it has a while to report"
    assert checks.beat(session, token=backup.ping_token) == backup.id
    session.commit()
    assert len(claim(session)) == 1
    with pytest.raises(NotFound):
        checks.beat(session, token=uuid4())
    with pytest.raises(InvalidInput):
        checks.beat(session, token=backup.ping_token, signal="maybe")


def test_a_report_while_a_run_is_under_way_is_not_overlooked(session, add, sql):
    backup = add("backup", "heartbeat", {"period_seconds": 60})
    make_due(session, backup)
    batch, runs = load(session, claim(session))
    checks.beat(session, token=backup.ping_token)
    session.commit()
    record(session, batch, runs, CheckStatus.DOWN)
    assert len(claim(session)) == 1


def set_back(sql, hours: int = 2) -> None:
    """The database's clock is set back: what was written lies so much further ahead."""
    sql(f"UPDATE ticks SET last_success_at = now() + interval '{hours} h' WHERE name = 'checks'")
    moved = ["next_run_at", "scheduled_at", "beat_since_at", "beat_at", "beat_started_at"]
    sql("UPDATE check_states SET " + ", ".join(f"{each} = {each} + interval '{hours} h'" for each in moved))


def recall(session: Session) -> int:
    recalled = check_runs.recall(session)
    session.commit()
    return recalled


def test_after_the_clock_was_set_back_checks_are_due_now_and_not_when_it_is_that_late_again(session, add, sql):
    site, flown = add(interval_seconds=60), add("flown", interval_seconds=60)
    paused = add("paused")
    backup = add("backup", "heartbeat", {"period_seconds": 86400})
    sql("INSERT INTO ticks (name, last_success_at) VALUES ('checks', now() - interval '2 s')")
    run(session, site, CheckStatus.UP)
    sql("UPDATE check_states SET next_run_at = now() + interval '1 d', beat_at = now() WHERE check_id = %s", backup.id)
    sql("UPDATE check_states SET next_run_at = now() WHERE check_id = %s", flown.id)
    batch, runs = load(session, claim(session))
    checks.pause(session, found=paused)
    session.commit()
    assert recall(session) == 0  # nothing is wrong, and a heartbeat may be a day away
    set_back(sql)
    assert not claim(session)
    assert recall(session) == 3
    ((_, ids),) = claim(session).items()
    assert set(ids) == {site.id, flown.id, backup.id}
    assert record(session, batch, runs, CheckStatus.DOWN)["late"] == 1
    assert sql("SELECT beat_at <= now() FROM check_states WHERE check_id = %s", backup.id) == [(True,)]
    assert standing(session, paused).next_run_at is None


def test_what_a_worker_that_stood_still_has_seen_long_ago_does_not_count(session, add, sql):
    site = add(failure_threshold=1)
    make_due(session, site)
    batch, runs = load(session, claim(session))
    sql("UPDATE check_states SET next_run_at = now() - interval '1 s'")  # given up, and nobody claims it anew
    assert record(session, batch, runs, CheckStatus.DOWN) == {"late": 1}
    assert standing(session, site).state is CheckState.UNKNOWN
    assert sql("SELECT count(*) FROM check_results WHERE status = 'down'") == [(0,)]
