"""Channels, routes, and what was told."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import defer

from db.alerting import Notice, Told
from db.connection import apply_context
from db.errors import NotFound
from db.models import Job, MonitoringAlert, Notification, NotificationChannel, NotificationRoute
from db.repositories.base import Page, Repository
from db.states import JobState, NotificationState

_BULK = {"synchronize_session": False}
_FINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Group:
    """What waits together for one channel."""

    channel_id: int
    group_key: str
    due_at: datetime


class ChannelRepository(Repository[NotificationChannel]):
    model = NotificationChannel
    noun = "channel"
    list_options = (defer(NotificationChannel.encrypted_config, raiseload=True),)

    def require_by_name(self, name: str) -> NotificationChannel:
        """Raises NotFound."""
        query = select(NotificationChannel).where(func.lower(NotificationChannel.name) == func.lower(name))
        found = self.session.scalar(query)
        if found is None:
            raise NotFound(f"there is no channel {name[:60]!r}", hint="ops channel list")
        return found

    def enabled(self) -> Mapping[int, int]:
        """The ids of enabled channels, and how many messages a minute each takes."""
        query = select(NotificationChannel.id, NotificationChannel.rate_limit)
        return {row.id: row.rate_limit for row in self.session.execute(query.where(_IS_ENABLED))}

    def disable(self, channel_id: int, because: str, *, is_broken: bool) -> bool:
        """Compare and set: False when it is disabled already, or gone."""
        apply_context(self.session)
        statement = (
            update(NotificationChannel)
            .where(NotificationChannel.id == channel_id, _IS_ENABLED)
            .values(
                disabled_at=func.clock_timestamp(), disabled_because=because, is_broken=is_broken,
                updated_at=func.clock_timestamp(),
            )
        )  # fmt: skip
        return self._took(statement)

    def enable(self, channel_id: int) -> bool:
        """Compare and set: False when it is enabled already, or gone."""
        apply_context(self.session)
        statement = (
            update(NotificationChannel)
            .where(NotificationChannel.id == channel_id, ~_IS_ENABLED)
            .values(disabled_at=None, disabled_because=None, is_broken=False, updated_at=func.clock_timestamp())
        )
        return self._took(statement)

    def _took(self, statement: Any) -> bool:
        query = statement.returning(NotificationChannel)
        return self.session.scalar(query, execution_options={"populate_existing": True}) is not None


_IS_ENABLED = NotificationChannel.disabled_at.is_(None)


class RouteRepository(Repository[NotificationRoute]):
    model = NotificationRoute
    noun = "route"

    def all_(self) -> Sequence[NotificationRoute]:
        """In the order in which they were added."""
        return self.session.scalars(select(NotificationRoute).order_by(NotificationRoute.id)).all()


class NotificationRepository(Repository[Notification]):
    model = Notification
    noun = "notification"

    def told(self, alert_ids: Sequence[int]) -> Mapping[int, Mapping[int, Told]]:
        """Per alert and channel the newest that was told, or is about to be."""
        query = (
            select(
                Notification.alert_id, Notification.channel_id, Notification.transition, Notification.sequence,
                Notification.created_at,
            )
            .where(Notification.alert_id.in_(alert_ids))
            .order_by(Notification.id)
        )  # fmt: skip
        found: dict[int, dict[int, Told]] = {}
        for row in self.session.execute(query):
            found.setdefault(row.alert_id, {})[row.channel_id] = Told(row.transition, row.sequence, row.created_at)
        return found

    def add_all(self, notices: Sequence[Notice]) -> int:
        """Insert; answers how many were new: each is told once."""
        if not notices:
            return 0
        apply_context(self.session)
        rows = [
            {
                "alert_id": each.alert_id, "channel_id": each.channel_id, "transition": each.transition,
                "sequence": each.sequence, "group_key": each.group_key, "due_at": each.due_at,
                "created_at": func.clock_timestamp(),
            }
            for each in notices
        ]  # fmt: skip
        statement = insert(Notification).values(rows).on_conflict_do_nothing()
        return len(self.session.scalars(statement.returning(Notification.id)).all())

    def due_groups(self) -> Sequence[Group]:
        """Groups whose wait is over, the oldest first. What was made at a time to come, before the clock was set back,
        has waited long enough."""
        first = func.min(Notification.due_at)
        query = (
            select(Notification.channel_id, Notification.group_key, first.label("due_at"))
            .where(Notification.state == NotificationState.WAITING)
            .group_by(Notification.channel_id, Notification.group_key)
            .having((first <= func.clock_timestamp()) | (func.max(Notification.created_at) > func.clock_timestamp()))
            .order_by(first, Notification.channel_id)
        )
        return [Group(*row) for row in self.session.execute(query)]

    def lately(self, within: timedelta, channel_ids: Collection[int]) -> Mapping[int, int]:
        """For each of these channels how many messages were made of what waited, lately."""
        query = (
            select(Notification.channel_id, func.count(func.distinct(Notification.job_id)))
            .where(Notification.channel_id.in_(channel_ids))
            .where(Notification.queued_at > func.statement_timestamp() - within)
            .where(Notification.queued_at <= func.statement_timestamp())  # of before the clock was set back is long ago
            .group_by(Notification.channel_id)
        )
        return {row[0]: row[1] for row in self.session.execute(query)}

    def queue(self, group: Group, job_id: UUID, limit: int) -> Sequence[int]:
        """Compare and set: what waits in a group goes with this job's message; answers the alerts."""
        apply_context(self.session)
        waiting = (
            select(Notification.id)
            .where(Notification.channel_id == group.channel_id, Notification.group_key == group.group_key)
            .where(Notification.state == NotificationState.WAITING)
            .order_by(Notification.id)
            .limit(limit)
        )
        statement = (
            update(Notification)
            .where(Notification.id.in_(waiting), Notification.state == NotificationState.WAITING)
            .values(
                state=NotificationState.QUEUED, job_id=job_id, queued_at=func.clock_timestamp(), error=None,
            )
        )  # fmt: skip
        return self.session.scalars(statement.returning(Notification.alert_id), execution_options=_BULK).all()

    def of_job(self, job_id: UUID) -> Sequence[tuple[Notification, MonitoringAlert]]:
        """What a job is to send and has not sent, in order, each with its alert."""
        query = (
            select(Notification, MonitoringAlert)
            .join(MonitoringAlert, MonitoringAlert.id == Notification.alert_id)
            .where(Notification.job_id == job_id, Notification.state == NotificationState.QUEUED)
            .order_by(Notification.id)
        )
        rows = self.session.execute(query, execution_options={"populate_existing": True})
        return [(row[0], row[1]) for row in rows]

    def finish(self, job_id: UUID, state: NotificationState, error: str | None = None) -> Sequence[int]:
        """Compare and set: what a job was to send is sent, or has failed; answers the alerts."""
        apply_context(self.session)
        statement = (
            update(Notification)
            .where(Notification.job_id == job_id, Notification.state == NotificationState.QUEUED)
            .values(state=state, finished_at=func.clock_timestamp(), error=error)
        )
        return self.session.scalars(statement.returning(Notification.alert_id), execution_options=_BULK).all()

    def postpone(self, job_id: UUID, error: str) -> None:
        """Say why it is not sent yet."""
        apply_context(self.session)
        statement = update(Notification).where(
            Notification.job_id == job_id,
            Notification.state == NotificationState.QUEUED,
            Notification.error.is_distinct_from(error),
        )
        self.session.execute(statement.values(error=error), execution_options=_BULK)

    def fail_orphans(self) -> Sequence[int]:
        """What no job will send any more has failed: its job was cancelled, has given up, or is gone. Answers the
        alerts."""
        apply_context(self.session)
        ended = select(Job.error).where(Job.id == Notification.job_id).scalar_subquery()
        dead = ~select(Job.id).where(Job.id == Notification.job_id, Job.state.not_in(_FINAL)).exists()
        statement = (
            update(Notification)
            .where(Notification.state == NotificationState.QUEUED, dead)
            .values(
                state=NotificationState.FAILED, finished_at=func.clock_timestamp(),
                error=func.coalesce(Notification.error, ended, "its job has ended"),
            )
        )  # fmt: skip
        return self.session.scalars(statement.returning(Notification.alert_id), execution_options=_BULK).all()

    def try_again(self, channel_id: int, since: timedelta) -> int:
        """What has failed lately on a channel waits again; answers how many."""
        apply_context(self.session)
        statement = (
            update(Notification)
            .where(Notification.channel_id == channel_id, Notification.state == NotificationState.FAILED)
            .where(Notification.created_at > func.clock_timestamp() - since)
            .values(
                state=NotificationState.WAITING, finished_at=None, job_id=None, queued_at=None, error=None,
                due_at=func.clock_timestamp(),
            )
        )  # fmt: skip
        return len(self.session.scalars(statement.returning(Notification.id), execution_options=_BULK).all())

    def of_alert(self, alert_id: int) -> Page[Notification]:
        """What was told of an alert, newest first."""
        return self.list_(Notification.alert_id == alert_id, limit=200)
