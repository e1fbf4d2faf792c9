"""Time that this worker lost is never the target's fault."""

from __future__ import annotations

import asyncio
import sys
import time
from types import ModuleType
from typing import Any

import pytest

from db.probes import ProbePlan, Seen
from db.states import CheckKind, CheckStatus
from tasks import probes
from tasks.probes.stall import Stall


class Lost:
    """So many seconds were lost since the run began."""

    def __init__(self, seconds: float) -> None:
        self._told = iter((0.0, seconds))

    def seconds(self) -> float:
        return next(self._told)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch):
    """What becomes of a probe that sees this, or takes for ever, where so much time was lost."""

    def run(answer: Seen | None, lost: float) -> Seen:
        module = ModuleType("tests.tasks.probes.stub")

        async def look(_plan: ProbePlan, _net: Any) -> Seen:
            return answer if answer is not None else await asyncio.Future()

        module.look = look  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(probes._MODULES, CheckKind.TCP, module.__name__)
        plan = ProbePlan(1, CheckKind.TCP, None, timeout_seconds=0.05)
        return asyncio.run(probes._look(plan, None, Lost(lost)))  # type: ignore[arg-type]

    return run


SLOW = Seen(CheckStatus.DOWN, 2.0, "it took 2.000 s", is_slow=True)


def test_a_timeout_is_the_targets_unless_the_time_was_lost_here(seen):
    assert seen(None, 0.0).status is CheckStatus.DOWN
    assert seen(None, 0.04).status is CheckStatus.UNKNOWN


def test_a_slow_answer_is_the_targets_unless_the_time_was_lost_here(seen):
    assert seen(SLOW, 0.4) == SLOW
    assert seen(SLOW, 0.6).status is CheckStatus.UNKNOWN
    refused = Seen(CheckStatus.DOWN, 2.0, "it answers 503")
    assert seen(refused, 1.9) == refused, "what it said it has said, however late we read it"


def test_a_loop_that_gets_a_third_of_the_processor_notices_what_it_loses():
    async def starve() -> float:
        async with Stall() as stall:
            for _ in range(10):  # never late by much at once
                time.sleep(0.08)  # noqa: ASYNC251 - that is what is tested
                await asyncio.sleep(0.001)
            return stall.seconds()

    assert asyncio.run(starve()) > 0.2
