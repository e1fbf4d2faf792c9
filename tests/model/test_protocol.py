"""The protocol holds in every world that can be reached; without any one of its rules something breaks, or only slows.

Each search is exhaustive within its scene. The larger ones are marked slow.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.scene import Rules, Scene
from tests.model.search import Found, search
from tests.model.world import Broken

ALL = Rules()
#: Two jobs on one key in one queue, the first may be repeated; two workers; nobody cancels.
TWO = Scene(cancels=(), faults=1)
ONE = Scene(idempotent=(True,), queues=("a",), cancels=(), workers=1, faults=4)
CALM = replace(TWO, faults=0)
#: The first job's queue is served by nobody.
UNSERVED = replace(TWO, queues=("b", "a"), served=("a",))
#: Workers never stall; the database may be away for longer than a lease.
OUTAGE = replace(TWO, stalls=False, outage=True)


def story(found: Found) -> str:
    return f"{found.broken}, {found.worlds} worlds: " + " > ".join(found.story)


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(replace(TWO, cancels=(0, 1)), id="one fault, any cancel"),
        pytest.param(replace(TWO, queues=("a", "b")), id="one key, two queues"),
        pytest.param(UNSERVED, id="a queue that nobody serves"),
        pytest.param(OUTAGE, id="the database is away"),
        pytest.param(ONE, id="four faults, one job"),
        pytest.param(replace(TWO, idempotent=(False, False)), id="nothing may be repeated"),
        pytest.param(replace(TWO, faults=2), id="two faults", marks=pytest.mark.slow),
        pytest.param(replace(TWO, faults=2, cancels=(0, 1)), id="two faults, any cancel", marks=pytest.mark.slow),
        pytest.param(replace(TWO, faults=3, workers=1), id="three faults, one worker", marks=pytest.mark.slow),
        pytest.param(replace(TWO, bells=2, cancels=(0,)), id="bells pile up", marks=pytest.mark.slow),
        pytest.param(replace(OUTAGE, faults=2), id="two outages", marks=pytest.mark.slow),
        pytest.param(
            replace(TWO, idempotent=(True, False, True), queues=("a", "b", "a"), faults=0),
            id="three jobs, two queues", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
@pytest.mark.timeout(1200)
def test_the_protocol_keeps_every_promise_and_always_has_a_way_to_the_end(scene: Scene) -> None:
    found = search(ALL, scene)
    assert found.broken is None, story(found)
    assert found.worlds > 100


@pytest.mark.parametrize(
    ("without", "scene", "broken"),
    [
        pytest.param({"relay": False}, TWO, Broken.STUCK, id="the relay"),
        pytest.param({"level_triggered": False}, TWO, Broken.STUCK, id="ringing again and again"),
        pytest.param({"rescue": False}, TWO, Broken.STUCK, id="the rescue"),
        pytest.param({"order": "key"}, UNSERVED, Broken.STUCK, id="order by queue"),
        pytest.param({"unique_index": False, "order": ""}, CALM, Broken.TWO_RUNNING, id="the unique index"),
        pytest.param(
            {"unique_index": False}, replace(CALM, queues=("a", "b")), Broken.TWO_RUNNING, id="the index, two queues"
        ),
        pytest.param({"verdict": False}, TWO, Broken.TWICE, id="the verdict on a lost attempt"),
        pytest.param({"begin_is_written": False}, TWO, Broken.TWICE, id="begin written before the effect"),
        pytest.param({"begin_sees_cancel": False}, replace(CALM, cancels=(0,)), Broken.AFTER_CANCEL, id="begin's look"),
        pytest.param({"supervisor": False}, TWO, Broken.OVERLAP, id="the supervisor"),
        pytest.param({"starts_nothing_late": False}, TWO, Broken.OVERLAP, id="the refusal to start late"),
        pytest.param({"supervisor_is_holder": False}, TWO, Broken.OVERLAP, id="the supervisor among the holders"),
        pytest.param({"fence": "none"}, replace(TWO, faults=2), Broken.STALE, id="any fence"),
        pytest.param({"fence": "attempt"}, replace(TWO, failover=True), Broken.STALE, id="the token in the fence"),
        pytest.param({"second_look": False}, OUTAGE, Broken.GIVEN_UP, id="the second look"),
        pytest.param({"bounded_rescues": False}, ONE, Broken.ENDLESS, id="the bound of rescues"),
        pytest.param({"cancel_beats_retry": False}, replace(TWO, cancels=(0,)), Broken.AFTER_CANCEL, id="cancel first"),
        pytest.param(
            {"success_beats_cancel": False}, replace(CALM, cancels=(0,)), Broken.FORGOTTEN, id="success first"
        ),
        pytest.param({"done_token": False}, TWO, Broken.CALLED_LATE, id="the token of the recorded end"),
    ],
)
def test_without_a_rule_a_promise_is_broken(without: dict[str, object], scene: Scene, broken: Broken) -> None:
    found = search(replace(ALL, **without), scene)
    assert found.broken is broken, story(found)


@pytest.mark.parametrize("rule", ["fast_path", "hand_over", "refused_head_rings", "pushes_back", "helps_the_head"])
def test_a_rule_that_only_saves_time_is_not_needed_for_any_promise(rule: str) -> None:
    found = search(replace(ALL, **{rule: False}), CALM)
    assert found.broken is None, story(found)


def test_the_relay_alone_brings_everything_to_its_end() -> None:
    alone = replace(
        ALL, fast_path=False, hand_over=False, refused_head_rings=False, pushes_back=False, helps_the_head=False
    )
    found = search(alone, TWO)
    assert found.broken is None, story(found)


def test_a_failover_that_forgets_a_claim_makes_no_two_workers_equal() -> None:
    """It may start an effect twice, which nothing in this database can prevent; rows stay with their holders."""
    unpromised = frozenset({Broken.OVERLAP, Broken.TWICE})
    found = search(ALL, replace(TWO, failover=True, unpromised=unpromised))
    assert found.broken is None, story(found)


def test_a_failover_that_forgets_a_claim_can_start_an_effect_twice() -> None:
    found = search(ALL, replace(TWO, failover=True))
    assert found.broken in (Broken.OVERLAP, Broken.TWICE), story(found)
