"""Schedules, and what became of their times."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, delete, func, literal, select, text, update
from sqlalchemy.orm import Session, defer, joinedload

from db.connection import apply_context
from db.errors import NotFound
from db.models import Deployment, Infrastructure, Job, Schedule, ScheduleRun, User
from db.repositories.base import Repository, bounded
from db.states import DeploymentStatus, JobState, RunOutcome

#: Joined: a schedule has one of each, and fires in one round trip less for each.
WITH_NAMES = (
    joinedload(Schedule.user).defer(User.hashed_password),
    joinedload(Schedule.application),
    joinedload(Schedule.infrastructure).options(defer(Infrastructure.encrypted_settings, raiseload=True)),
)


@dataclass(frozen=True, slots=True)
class Due:
    """A schedule whose time has come, its row held; ``now`` is the time that was asked for, or the database's."""

    id: int
    fire_at: datetime
    now: datetime


@dataclass(frozen=True, slots=True)
class Tried:
    """A time at which something was to be enqueued, and how that stands by now."""

    fire_at: datetime
    #: None: it could not be enqueued, or its job is gone.
    state: JobState | DeploymentStatus | None
    enqueued: bool

    @property
    def is_over(self) -> bool:
        return self.state is None or self.state.is_final

    @property
    def has_failed(self) -> bool:
        bad = (JobState.FAILED, DeploymentStatus.FAILED, DeploymentStatus.ERROR)
        return self.state in bad if self.enqueued else True


class ScheduleRepository(Repository[Schedule]):
    model = Schedule
    noun = "schedule"
    list_options = WITH_NAMES

    def get_by_name(self, name: str) -> Schedule | None:
        query = select(Schedule).where(func.lower(Schedule.name) == name.lower()).options(*WITH_NAMES)
        return self.session.scalar(query)

    def require_by_name(self, name: str) -> Schedule:
        """Raises NotFound."""
        found = self.get_by_name(name)
        if found is None:
            raise NotFound(f"there is no schedule {name[:80]!r}", hint="ops schedule list")
        return found

    def all_with_names(self) -> Sequence[Schedule]:
        """Every schedule, by name."""
        return self.session.scalars(select(Schedule).options(*WITH_NAMES).order_by(func.lower(Schedule.name))).all()

    def lock_due(self, now: datetime | None, apart_from: Collection[int] = ()) -> Due | None:
        """The one that has been due for longest and that nobody else holds; None: nothing is due."""
        time = func.clock_timestamp() if now is None else literal(now)
        query = (
            select(Schedule.id, Schedule.next_run_at, time)
            .where(Schedule.next_run_at <= time, Schedule.id.not_in(list(apart_from)))
            .order_by(Schedule.next_run_at, Schedule.id)
            .limit(1)
            .with_for_update(skip_locked=True, key_share=True)
        )
        row = self.session.execute(query).one_or_none()
        return None if row is None else Due(*row)

    def lock(self, schedule_id: int) -> None:
        """Hold its row: nothing fires it meanwhile."""
        self.session.execute(select(Schedule.id).where(Schedule.id == schedule_id).with_for_update(key_share=True))

    def advance(self, schedule_id: int, came_from: datetime, **values: Any) -> bool:
        """Compare and set the next time; False: somebody else has moved it."""
        apply_context(self.session)
        statement = update(Schedule).where(Schedule.id == schedule_id, Schedule.next_run_at == came_from)
        # That it fired is no edit.
        return self._changed(statement.values(updated_at=Schedule.updated_at, **values)) == 1

    def pause(self, schedule_id: int, because: str) -> bool:
        """Compare and set; False: it is paused already. Whoever edits the row learns that it has changed."""
        apply_context(self.session)
        statement = update(Schedule).where(Schedule.id == schedule_id, Schedule.paused_at.is_(None))
        return self._changed(
            statement.values(
                paused_at=func.clock_timestamp(), paused_because=because, next_run_at=None,
                updated_at=func.clock_timestamp(), version_id=Schedule.version_id + 1,
            )
        ) == 1  # fmt: skip

    def _changed(self, statement: Any) -> int:
        result = self.session.execute(statement, execution_options={"synchronize_session": False})
        assert isinstance(result, CursorResult)
        return int(result.rowcount)


class ScheduleRunRepository:
    """What became of each time of a schedule."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, run: ScheduleRun) -> ScheduleRun:
        """The row's key lets each time have one only: a second one raises IntegrityError."""
        apply_context(self.session)
        self.session.add(run)
        self.session.flush()
        return run

    def has(self, schedule_id: int, fire_at: datetime) -> bool:
        query = select(ScheduleRun.id).where(ScheduleRun.schedule_id == schedule_id, ScheduleRun.fire_at == fire_at)
        return self.session.scalar(query) is not None

    def latest(self, schedule_id: int, limit: int = 20) -> Sequence[ScheduleRun]:
        """The newest first."""
        query = select(ScheduleRun).where(ScheduleRun.schedule_id == schedule_id)
        return self.session.scalars(query.order_by(ScheduleRun.fire_at.desc()).limit(bounded(limit))).all()

    def tried(self, schedule_id: int, limit: int = 100) -> list[Tried]:
        """The newest times at which it was to enqueue something, and how that stands; the newest first."""
        query = (
            select(ScheduleRun.fire_at, ScheduleRun.outcome, Job.state, Deployment.status)
            .outerjoin(Job, Job.id == ScheduleRun.job_id)
            .outerjoin(Deployment, Deployment.id == ScheduleRun.deployment_id)
            .where(ScheduleRun.schedule_id == schedule_id, ScheduleRun.outcome != text("'skipped'"))
            .order_by(ScheduleRun.fire_at.desc())
            .limit(limit)
        )
        # A deployment that is tried again has another job than the one it was enqueued with.
        return [
            Tried(fire_at, status or state, outcome is RunOutcome.ENQUEUED)
            for fire_at, outcome, state, status in self.session.execute(query)
        ]

    def remove_old(self, days: int, most: int) -> int:
        """Remove what was decided so many days ago; answers how many, at most ``most``."""
        old = (
            select(ScheduleRun.id)
            .where(ScheduleRun.fired_at < func.now() - text(f"interval '{int(days)} days'"))
            .order_by(ScheduleRun.fired_at)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
        statement = delete(ScheduleRun).where(ScheduleRun.id.in_(old)).returning(ScheduleRun.id)
        return len(self.session.scalars(statement).all())
