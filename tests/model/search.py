"""Breadth first through all worlds: is a promise broken anywhere, and is there always a way to the end?"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tests.model.protocol import Protocol
from tests.model.scene import Rules, Scene
from tests.model.world import Broken, Violation, World


@dataclass(frozen=True)
class Found:
    """What a search found: ``broken`` is None when every promise holds; ``story`` is the shortest way to the fault."""

    broken: Broken | None
    worlds: int
    story: tuple[str, ...] = ()


def search(rules: Rules, scene: Scene, most_worlds: int = 5_000_000) -> Found:
    """Look at every world that can be reached. Raises RuntimeError beyond ``most_worlds``."""
    protocol = Protocol(rules, scene)
    start = scene.start()
    came: dict[World, tuple[World, str] | None] = {start: None}
    fair_before: dict[World, list[World]] = {}
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        try:
            steps = protocol.steps(world)
        except Violation as violation:
            return Found(violation.broken, len(came), (*_story(came, world), violation.label))
        for label, after, fair in steps:
            if after not in came:
                came[after] = (world, label)
                waiting.append(after)
            if fair and after != world:
                fair_before.setdefault(after, []).append(world)
        if len(came) > most_worlds:
            raise RuntimeError(f"more than {most_worlds} worlds")
    stuck = _without_an_end(protocol, came, fair_before)
    if stuck is not None:
        return Found(Broken.STUCK, len(came), _story(came, stuck))
    return Found(None, len(came))


def _without_an_end(
    protocol: Protocol, came: dict[World, tuple[World, str] | None], fair_before: dict[World, list[World]]
) -> World | None:
    """The first world from which no fair steps lead to one in which everything has ended."""
    good = {world for world in came if protocol.is_over(world)}
    waiting = deque(good)
    while waiting:
        for before in fair_before.get(waiting.popleft(), ()):
            if before not in good:
                good.add(before)
                waiting.append(before)
    return next((world for world in came if world not in good), None)


def _story(came: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    labels = []
    while (step := came[world]) is not None:
        world, label = step
        labels.append(label)
    return tuple(reversed(labels))
