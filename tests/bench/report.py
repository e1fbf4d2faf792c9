"""Lines of a benchmark: a figure, what it is compared with in the same run, the ratio, and PASS or MISS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Report:
    """Collects lines; ``exit_code`` is 1 for a MISS only when BENCH_STRICT=1: machines differ, ratios less so."""

    misses: list[str] = field(default_factory=list)

    def section(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def figure(self, name: str, value: str) -> None:
        """A figure without a target."""
        print(f"  {name:<58} {value}", flush=True)

    def at_most(self, name: str, ratio: float, target: float, detail: str) -> None:
        self._line(name, ratio, f"<= {target:g}", detail, passed=ratio <= target)

    def at_least(self, name: str, ratio: float, target: float, detail: str) -> None:
        self._line(name, ratio, f">= {target:g}", detail, passed=ratio >= target)

    def _line(self, name: str, ratio: float, target: str, detail: str, *, passed: bool) -> None:
        word = "PASS" if passed else "MISS"
        print(f"  {name:<58} {ratio:8.2f}  target {target:<8} {word}   {detail}", flush=True)
        if not passed:
            self.misses.append(name)

    @property
    def exit_code(self) -> int:
        print(f"\nbench: {len(self.misses)} missed{': ' + ', '.join(self.misses) if self.misses else ''}")
        return 1 if self.misses and os.environ.get("BENCH_STRICT") == "1" else 0


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
