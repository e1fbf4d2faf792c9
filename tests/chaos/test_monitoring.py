"""Alerts are the true down intervals, whatever is killed; and the judge of that knows a broken promise."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.chaos.truth import SAID, SHORTEST_SECONDS, Alert, Run, judge, judge_runs, script
from tests.guardian import ROOT

TRUTH = [[(100.0, 200.0), (300.0, 400.0)], [], [(100.0, 200.0)]]
ALERTS = [Alert(1, 0, 110.0, 210.0), Alert(2, 0, 310.0, 410.0), Alert(3, 2, 105.0, 204.0)]
TOLD = [
    {"channel": channel, "id": f"{channel}{alert.id}{transition}",
     "alerts": [{"id": alert.id, "transition": transition}]}
    for channel in ("a", "b") for alert in ALERTS for transition in ("raised", "resolved")
]  # fmt: skip


def broken(alerts: list[Alert], messages: list[dict[str, object]]) -> list[str]:
    return [line.name.strip() for line in judge(TRUTH, alerts, messages, 2) if not line.is_kept]


def test_what_is_as_it_was_is_kept_and_a_message_that_came_twice_is_one():
    assert broken(ALERTS, TOLD) == []
    assert broken(ALERTS, [*TOLD, TOLD[0]]) == []


@pytest.mark.parametrize(
    ("alerts", "messages", "said"),
    [
        (ALERTS[1:], TOLD, "missed"),
        ([*ALERTS, Alert(4, 1, 150.0, 160.0)], TOLD, "invented"),
        ([*ALERTS, Alert(4, 2, 150.0, 160.0)], TOLD, "invented"),
        ([*ALERTS[:2], Alert(3, 2, 105.0, None)], TOLD, "not resolved, or before the end"),
        ([*ALERTS[:2], Alert(3, 2, 105.0, 150.0)], TOLD, "not resolved, or before the end"),
        ([*ALERTS[:2], Alert(3, 2, 50.0, 250.0)], TOLD, "missed"),
        ([*ALERTS[:2], Alert(3, 2, 200.1, 250.0)], TOLD, "invented"),
        (ALERTS, TOLD[1:], "(alert, channel) told of its beginning"),
        (ALERTS, [*TOLD, TOLD[0] | {"id": "another"}], "told more than once"),
    ],
)
def test_a_broken_promise_is_seen(alerts, messages, said):
    assert said in broken(alerts, messages)


@pytest.mark.parametrize(
    "run",
    [Run(0, 250.0, SAID), Run(1, 150.0, SAID), Run(0, 150.0, "no answer within 4 s"), Run(0, 69.0, SAID)],
)
def test_a_run_that_says_down_of_a_site_that_did_not_is_seen(run):
    true = [Run(0, 100.0, SAID), Run(0, 71.0, SAID), Run(2, 199.9, SAID)]  # claimed before it was down, and asked after
    assert judge_runs(TRUTH, true)[1] == []
    assert judge_runs(TRUTH, [*true, run])[1] == [run]


def test_the_script_is_the_same_for_a_seed_and_leaves_time_to_see_everything():
    made = script(500, 1000.0, 300.0, seed=3)
    assert made == script(500, 1000.0, 300.0, seed=3)
    assert made != script(500, 1000.0, 300.0, seed=4)
    assert sum(len(each) == 2 for each in made) > 50
    for each in made:
        assert all(end - start >= SHORTEST_SECONDS for start, end in each)
        assert all(then[0] - before[1] >= 0.9 * SHORTEST_SECONDS for before, then in pairwise(each))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_alerts_are_the_true_intervals_while_everything_is_killed():
    ran = subprocess.run(
        [sys.executable, "-m", "tests.chaos.monitoring"], env=os.environ | {"CHAOS_SECONDS": "20"}, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-4000:]
    assert "all promises were kept" in ran.stdout
