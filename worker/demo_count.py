"""What the demo counts: tables on one side, what was done outside on the other. Nothing here is printed by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import AuditLog, Deployment, Job
from db.states import DeploymentStatus, JobState

#: The entries that each transition of a job leaves.
STARTED = "job.started"
ENDED = ("job.succeeded", "job.failed", "job.lost", "job.retried", "job.cancelled", "job.expired")


@dataclass(frozen=True)
class Effects:
    """What the deployed program wrote outside: how often each job's effect began and ended."""

    begun: Counter[str]
    ended: Counter[str]

    @classmethod
    def read(cls, path: Path) -> Effects:
        begun: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            word, job, *_ = line.split()
            (begun if word == "begin" else ended)[job] += 1
        return cls(begun, ended)

    def has_begun(self, job: UUID) -> bool:
        return self.begun[str(job)] > 0


@dataclass(frozen=True)
class Row:
    """One deployment, as the platform tells it and as it was seen outside."""

    number: int
    version: str
    status: str
    attempts: int
    outcome: str | None
    error: str | None
    begun: int
    ended: int
    job_id: str

    @classmethod
    def read(cls, session: Session, number: int, effects: Effects) -> Row:
        deployment = session.get_one(Deployment, number)
        job = session.get_one(Job, deployment.job_id)
        return cls(
            number, deployment.version, deployment.status.value, job.attempt,
            job.outcome.value if job.outcome else None, deployment.error_message,
            effects.begun[str(job.id)], effects.ended[str(job.id)], str(job.id),
        )  # fmt: skip

    @property
    def effect(self) -> str:
        if not self.begun:
            return "never begun"
        return f"begun {self.begun}, ended {self.ended}"

    @property
    def is_accounted(self) -> bool:
        """True when it has ended, and what the platform says agrees with what was done: a success came to its end; what
        was cut off in the middle says that it was."""
        if not DeploymentStatus(self.status).is_final:
            return False
        if self.status == DeploymentStatus.SUCCESS:
            return self.begun >= 1 and self.ended >= 1
        if self.begun > self.ended:
            return self.status == DeploymentStatus.ERROR and bool(self.error)
        return bool(self.error) or self.status == DeploymentStatus.CANCELLED


@dataclass(frozen=True)
class Total:
    """The line that the demo ends with."""

    unaccounted: int
    run_twice: int
    steps_recorded: int
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.unaccounted} unaccounted   {self.run_twice} run twice   "
            f"{self.steps_recorded} of {self.steps} steps in the audit log"
        )


def count(session: Session, rows: list[Row]) -> Total:
    """Count over these deployments. Each job has one step for being enqueued, one for each attempt's start, and one for
    each attempt's end; each deployment one for being asked for and one for each change of its status."""
    steps = recorded = 0
    for row in rows:
        job = session.get_one(Job, UUID(row.job_id))
        ends = job.attempt if job.state != JobState.RUNNING else job.attempt - 1
        expected = Counter({"job.enqueued": 1, STARTED: job.attempt, "ended": ends, "deployment": 2 + job.attempt})
        entries = session.execute(
            select(AuditLog.action, func.count())
            .where(
                ((AuditLog.resource_type == "job") & (AuditLog.resource_id == row.job_id))
                | ((AuditLog.resource_type == "deployment") & (AuditLog.resource_id == str(row.number)))
            )
            .group_by(AuditLog.action)
        )
        found: Counter[str] = Counter()
        for action, times in entries:
            kind = "ended" if action in ENDED else "deployment" if action.startswith("deployment.") else action
            found[kind] += times
        steps += expected.total()
        recorded += sum(min(found[kind], times) for kind, times in expected.items())
    twice = sum(row.begun > 1 for row in rows)
    return Total(sum(not row.is_accounted for row in rows), twice, recorded, steps)


def verdict(total: Total, *, as_expected: bool) -> int:
    """The exit code."""
    good = total.unaccounted == 0 and total.run_twice == 0 and total.steps_recorded == total.steps and total.steps > 0
    return 0 if good and as_expected else 1
