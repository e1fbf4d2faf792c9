"""Deployments and what they printed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Text, and_, cast, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session, aliased, defer, selectinload, undefer

from db.connection import apply_context
from db.models import Application, Deployment, DeploymentLog, Infrastructure, User
from db.repositories.base import Page, Repository, bounded
from db.states import DeploymentStatus

#: The work said no, or nobody can tell.
BAD = (DeploymentStatus.FAILED, DeploymentStatus.ERROR)
WITH_NAMES = (
    selectinload(Deployment.user).defer(User.hashed_password),
    selectinload(Deployment.application),
    selectinload(Deployment.infrastructure).options(defer(Infrastructure.encrypted_settings, raiseload=True)),
)


class DeploymentRepository(Repository[Deployment]):
    model = Deployment
    noun = "deployment"

    def get_with_relations(self, deployment_id: int) -> Deployment | None:
        """A deployment with its user, application, infrastructure and job."""
        return self.get(deployment_id, *WITH_NAMES, selectinload(Deployment.job))

    def get_frozen(self, deployment_id: int) -> Deployment | None:
        """A deployment with its user, application, infrastructure, and what it is to do."""
        return self.get(deployment_id, *WITH_NAMES, undefer(Deployment.frozen))

    def get_by_job(self, job_id: UUID) -> Deployment | None:
        return self.session.scalar(select(Deployment).where(Deployment.job_id == job_id))

    def get_user_deployments(
        self, user_id: int, status: DeploymentStatus | str | None = None, *, limit: int = 50, before: int | None = None
    ) -> Sequence[Deployment]:
        """A user's deployments, newest first. Raises InvalidInput for no status."""
        where = [Deployment.user_id == user_id]
        if status is not None:
            where.append(Deployment.status == status)
        return self.list_(*where, limit=limit, before=before).items

    def status(self, deployment_id: int) -> str:
        """The status in the table now, whatever this session has loaded before; "gone" where there is no row."""
        found = self.session.scalar(select(Deployment.status).where(Deployment.id == deployment_id))
        return found.value if found else "gone"

    def list_with_names(
        self, *where: ColumnElement[bool], limit: int = 50, before: int | None = None
    ) -> Page[Deployment]:
        return self.list_(*where, limit=limit, before=before, options=WITH_NAMES)

    def search(
        self,
        *,
        user_id: int | None = None,
        application_id: int | None = None,
        infrastructure_id: int | None = None,
        status: DeploymentStatus | str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> Page[Deployment]:
        """Deployments with their names, newest first. Raises InvalidInput for no status."""
        asked = {
            "user_id": user_id, "application_id": application_id, "infrastructure_id": infrastructure_id,
            "status": status,
        }  # fmt: skip
        where = [getattr(Deployment, name) == value for name, value in asked.items() if value is not None]
        return self.list_with_names(*where, limit=limit, before=before)

    def newest_started(
        self, application_id: int, infrastructure_id: int | None, *, after: datetime, until: datetime
    ) -> Deployment | None:
        """The newest deployment of an application (on an infrastructure, where one is given) that started between."""
        where = [Deployment.application_id == application_id, Deployment.started_at.between(after, until)]
        if infrastructure_id is not None:
            where.append(Deployment.infrastructure_id == infrastructure_id)
        return self.session.scalar(select(Deployment).where(*where).order_by(Deployment.id.desc()).limit(1))

    def failures(self) -> Sequence[Any]:
        """Deployments that failed and that no later end there has overtaken, with the names of what and where."""
        later = aliased(Deployment)
        overtaken = (
            select(later.id)
            .where(
                later.application_id == Deployment.application_id,
                later.infrastructure_id == Deployment.infrastructure_id,
                # By the time of the end: a deployment that is tried again ends again.
                tuple_(later.finished_at, later.id) > tuple_(Deployment.finished_at, Deployment.id),
                later.status.in_((*BAD, DeploymentStatus.SUCCESS)),
            )
            .exists()
        )
        query = (
            select(Deployment, Application.name, Infrastructure.name, Infrastructure.environment)
            .join(Application, Application.id == Deployment.application_id)
            .join(Infrastructure, Infrastructure.id == Deployment.infrastructure_id)
            .where(Deployment.status.in_(BAD), ~overtaken)
            .order_by(Deployment.id)
        )
        return self.session.execute(query, execution_options={"populate_existing": True}).all()

    def has_recovered(
        self, failed_id: int | None, application_id: int, infrastructure_id: int, since: datetime
    ) -> bool:
        """Whether something was deployed well there after the end of that failure (where it is gone: after a time)."""
        ended = select(Deployment.finished_at).where(Deployment.id == failed_id).scalar_subquery()
        better = aliased(Deployment)
        query = select(better.id).where(
            better.application_id == application_id,
            better.infrastructure_id == infrastructure_id,
            better.status == DeploymentStatus.SUCCESS,
            better.finished_at >= func.coalesce(ended, since),
        )
        return self.session.scalar(query.limit(1)) is not None

    def latest(self, application_id: int, infrastructure_id: int, *statuses: DeploymentStatus) -> Deployment | None:
        """The newest deployment of an application on an infrastructure, of these statuses or any."""
        where = [Deployment.application_id == application_id, Deployment.infrastructure_id == infrastructure_id]
        if statuses:
            where.append(Deployment.status.in_(statuses))
        return self.session.scalar(select(Deployment).where(*where).order_by(Deployment.id.desc()).limit(1))

    def lock_way_back(self, application_id: int, infrastructure_id: int) -> None:
        """Whoever else asks for the way back there waits until the end of this transaction."""
        name = f"ops_way_back:{Deployment.__table__.schema}:{infrastructure_id}/{application_id}"
        self.session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))

    def latest_begun(self, application_id: int, infrastructure_id: int) -> Deployment | None:
        """The deployment that changed something there last: the newest that was begun and has ended, unless it has
        been rolled back."""
        query = (
            select(Deployment)
            .where(
                Deployment.application_id == application_id,
                Deployment.infrastructure_id == infrastructure_id,
                Deployment.finished_at.is_not(None),
                (Deployment.started_at.is_not(None)) | (Deployment.status == DeploymentStatus.SUCCESS),
                Deployment.status != DeploymentStatus.ROLLED_BACK,
            )
            .order_by(func.coalesce(Deployment.started_at, Deployment.finished_at).desc(), Deployment.id.desc())
            .limit(1)
        )
        return self.session.scalar(query)

    def good_before(self, replaced: Deployment, *, version: str | None = None) -> Deployment | None:
        """The last success at the place of a deployment that put something else there; with a version, the last with
        that one, rolled back since or not."""
        good = [DeploymentStatus.SUCCESS]
        where = [
            Deployment.application_id == replaced.application_id,
            Deployment.infrastructure_id == replaced.infrastructure_id,
            Deployment.id != replaced.id,
        ]
        if version is not None:
            good.append(DeploymentStatus.ROLLED_BACK)
            where.append(Deployment.version == version)
        elif replaced.status is DeploymentStatus.SUCCESS:
            where += [~_same_content(Deployment, replaced), self._before(replaced)]
        query = select(Deployment).where(*where, Deployment.status.in_(good))
        return self.session.scalar(query.order_by(Deployment.finished_at.desc(), Deployment.id.desc()).limit(1))

    def _before(self, replaced: Deployment) -> ColumnElement[bool]:
        """Where the replaced one is itself a way back: what ended before that which it went back to. One way back
        after the other leads further back then, and never to and fro."""
        first = aliased(Deployment)
        went_back_to = select(func.max(first.finished_at)).where(
            first.application_id == replaced.application_id,
            first.infrastructure_id == replaced.infrastructure_id,
            first.rollback_deployment_id.is_(None),
            first.status.in_([DeploymentStatus.SUCCESS, DeploymentStatus.ROLLED_BACK]),
            _same_content(first, replaced),
        )
        return Deployment.finished_at < func.coalesce(went_back_to.scalar_subquery(), replaced.finished_at)

    def pin(self, deployment_id: int, job_id: UUID, digest: str) -> str | None:
        """Set the release's digest where there is none; the digest then, None when the job is another one."""
        apply_context(self.session)
        query = (
            update(Deployment)
            .where(Deployment.id == deployment_id, Deployment.job_id == job_id)
            .values(release_digest=func.coalesce(Deployment.release_digest, digest), updated_at=func.clock_timestamp())
            .returning(Deployment.release_digest)
        )
        return self.session.scalar(query)

    def move(
        self, deployment_id: int, came_from: Sequence[DeploymentStatus], to: DeploymentStatus, /, **values: Any
    ) -> Deployment | None:
        """Compare and set: the deployment, or None when it was in none of these statuses."""
        apply_context(self.session)
        query = (
            update(Deployment)
            .where(Deployment.id == deployment_id, Deployment.status.in_(came_from))
            .values(status=to, updated_at=func.clock_timestamp(), **values)
            .returning(Deployment)
        )
        return self.session.scalar(query, execution_options={"populate_existing": True})


def _same_content(row: Any, other: Deployment) -> ColumnElement[bool]:
    """The same version, content and configuration of the application, however its place is reached."""
    there = aliased(Deployment)
    whats = [each.frozen.op("-")(cast(["driver", "settings"], ARRAY(Text))) for each in (row, there)]
    return and_(
        row.version == other.version,
        row.release_digest.is_not_distinct_from(other.release_digest),
        whats[0].is_not_distinct_from(select(whats[1]).where(there.id == other.id).scalar_subquery()),
    )


class DeploymentLogRepository:
    """Log chunks: appended, followed by a cursor, removed with their deployment or by retention."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def append(self, chunks: Sequence[dict[str, Any]]) -> None:
        """Add chunks in order: deployment_id, attempt, stream, content."""
        if chunks:
            self.session.execute(insert(DeploymentLog), list(chunks))

    def after(self, deployment_id: int, cursor: int = 0, *, limit: int = 500) -> Sequence[DeploymentLog]:
        """Chunks that came after the cursor, which is the id of the last one seen."""
        query = select(DeploymentLog).where(DeploymentLog.deployment_id == deployment_id, DeploymentLog.id > cursor)
        return self.session.scalars(query.order_by(DeploymentLog.id).limit(bounded(limit))).all()

    def cursor(self, deployment_id: int) -> int:
        """Of all that there is so far."""
        query = select(func.max(DeploymentLog.id)).where(DeploymentLog.deployment_id == deployment_id)
        return self.session.scalar(query) or 0
