"""What really happened, from the files that the deployed programs wrote: evidence from outside of the platform."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass
class Run:
    """One process that a deployment started. Times are of CLOCK_MONOTONIC; ``last`` is its last sign of life."""

    job: str
    attempt: int
    fence: int
    pid: int
    began: float
    last: float
    ended: bool = False


@dataclass
class Effects:
    """The evidence in one file."""

    file: Path
    runs: list[Run] = field(default_factory=list)

    def read(self) -> list[Run]:
        """The runs so far, in the order in which they began."""
        found: dict[tuple[str, str], Run] = {}
        text = self.file.read_text() if self.file.exists() else ""
        for line in text.splitlines():
            word, job, attempt, fence, pid, at = line.split()
            if word == "begin":
                assert (job, pid) not in found, f"two runs in one process: {line}"
                found[job, pid] = Run(job, int(attempt), int(fence), int(pid), float(at), float(at))
            run = found[job, pid]
            run.last = float(at)
            run.ended = run.ended or word == "end"
        self.runs = list(found.values())
        return self.runs

    def of(self, job: str) -> list[Run]:
        return [run for run in self.read() if run.job == job]

    def check(self, keys: dict[str, str], jobs: Iterable[str] | None = None) -> None:
        """No job's effect began twice, and on one lock key no run lived when the next one began.

        ``keys`` maps each job to its lock key. ``jobs``: those whose effect must have begun exactly once.
        """
        runs = self.read()
        assert not (strange := {run.job for run in runs} - set(keys)), f"effects of unknown jobs: {strange}"
        count = Counter(run.job for run in runs)
        assert not (twice := {job: n for job, n in count.items() if n > 1}), f"effects that began twice: {twice}"
        if jobs is not None:
            assert not (never := set(jobs) - set(count)), f"effects that never began: {never}"
        by_key: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            by_key[keys[run.job]].append(run)
        for key, those in by_key.items():
            those.sort(key=lambda run: run.began)
            for before, after in pairwise(those):
                assert before.last < after.began, f"on {key} {after} began while {before} was alive"
                assert before.fence < after.fence, f"on {key} the fence went back: {before}, {after}"
