"""Histories of checks that are watched and told of, and a slow model of what must come of them: it knows every result
that counts, and nothing of batches, intervals, looks or clocks."""

from __future__ import annotations

from typing import Any, Protocol

from hypothesis import strategies as st

from tests.db.test_checkstates import Model

CHECKS = 6
FAILURES, SUCCESSES = 2, 2

status = st.sampled_from(["up", "up", "down", "down", "down", "degraded", "unknown"])
every = st.lists(status, min_size=CHECKS, max_size=CHECKS)
#: What happens. Runs name what each check sees; ``late`` and ``twice`` bring another answer for a run that is over.
happenings = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["run", "run", "run", "run", "lost", "late", "twice"]), every),
        st.tuples(st.sampled_from(["look", "look", "look twice", "look cut", "dispatch", "dispatch cut", "restart"])),
        st.tuples(st.just("jump"), st.integers(-600, 600)),
    ),
    min_size=5,
    max_size=40,
)


class Truth:
    """One check: the times at which it was down, and whether each goes on."""

    def __init__(self) -> None:
        self.model = Model(FAILURES, SUCCESSES)
        self.spells: list[bool] = []
        self.has_flapped = False

    def saw(self, status: str) -> None:
        self.model.run(status)
        self.has_flapped |= self.model.is_flapping
        is_down = self.model.state == "down"
        if is_down and not (self.spells and self.spells[-1]):
            self.spells.append(True)
        elif self.model.state in ("up", "degraded") and self.spells:
            self.spells[-1] = False


class World(Protocol):
    """What is tested: all checks, their alerts and what is told."""

    def claim(self) -> Any: ...
    def record(self, claimed: Any, seen: list[str]) -> None: ...
    def look(self, *, cut: bool = False) -> None: ...
    def dispatch(self, *, cut: bool = False) -> None: ...
    def restart(self) -> None: ...
    def jump(self, seconds: int) -> None: ...
    def alerts(self, check: int) -> list[bool]:
        """Of the alerts that it was down, in order: whether each is firing."""
        ...

    def told(self, check: int) -> list[tuple[int, str]]:
        """Per alert (by its place) and transition one pair for each time a channel was told of it, in order."""
        ...


def play(world: World, history: list[Any]) -> list[Truth]:
    """Let it happen; answers the truth."""
    truth = [Truth() for _ in range(CHECKS)]
    has_jumped = False
    world.look()
    for what, *more in history:
        match what:
            case "run" | "twice" | "late":
                claimed, seen = world.claim(), more[0]
                other = list(reversed(seen))
                if what == "late":
                    before, claimed = claimed, world.claim()
                world.record(claimed, seen)
                if what == "late":
                    world.record(before, other)
                if what == "twice":
                    world.record(claimed, other)
                for each, saw in zip(truth, seen, strict=True):
                    each.saw(saw)
            case "lost":
                world.claim()
            case "restart":
                world.restart()
            case "jump":
                if has_jumped:  # a clock that is set twice between two looks can hide what was over in between
                    world.look()
                    world.look()
                world.jump(more[0])
                has_jumped = True
            case _:
                kind, _, how = what.partition(" ")
                act = world.look if kind == "look" else world.dispatch
                for _ in range(2 if how == "twice" else 1):
                    act(cut=how == "cut")
    return truth


def check(world: World, history: list[Any]) -> None:
    """No transition is missed, none invented, and each is told once."""
    truth = play(world, history)
    for act in (world.look, world.dispatch, world.look, world.dispatch):
        act()
    for number, each in enumerate(truth):
        alerts = world.alerts(number)
        if each.has_flapped:  # its turns are one alert, or several; never more than there were, and true at the end
            assert len(alerts) <= len(each.spells), (number, alerts, each.spells)
            assert each.model.is_flapping or alerts[-1:] == each.spells[-1:]
        else:
            assert alerts == each.spells, (number, alerts, each.spells)
        wanted = [
            (place, said)
            for place, is_firing in enumerate(alerts)
            for said in (["raised"] if is_firing else ["raised", "resolved"])
        ]
        assert sorted(world.told(number)) == wanted, number
