"""The front door for applications that embed the layer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from db.alert_service import AlertService
from db.check_service import CheckService
from db.connection import audit_context
from db.front import Listing, found
from db.host_service import HostService
from db.models import (
    APIKey,
    Application,
    AuditLog,
    Deployment,
    DeploymentLog,
    Infrastructure,
    User,
)
from db.repositories import (
    ApplicationRepository,
    AuditLogRepository,
    DeploymentLogRepository,
    DeploymentRepository,
    InfrastructureRepository,
    UserRepository,
)
from db.schedule_service import ScheduleService
from db.services import (
    applications,
    deployments,
    infrastructure,
    logins,
    rollbacks,
    secrets,
    users,
)
from db.specs import AuditSearch, DeploymentFilter, PageSpec, check
from db.states import DeploymentStatus, JobState, Role

__all__ = ["DatabaseService", "Listing"]


class DatabaseService(AlertService, CheckService, HostService, ScheduleService):
    """What an application does, in one session's transaction; every change is audited.

    Without an actor it acts as ``system``, which is trusted; with one, the actor's rights are checked and the actor
    stands in the audit trail. It never commits: that is the session's owner's to do. What cannot be done raises one
    of :mod:`db.errors`, with nothing written, and the session goes on. Beside what each method names, all raise
    InvalidInput for a value of the wrong kind and PermissionDenied where the actor may not.
    """

    def __init__(self, session: Session, actor: User | None = None) -> None:
        self.session = session
        self.actor = actor
        if actor is not None:
            audit_context(session, actor=actor.username, actor_id=actor.id, actor_type="user")
        else:
            audit_context(session)

    # Users.

    def create_user_with_audit(
        self,
        username: str,
        email: str,
        hashed_password: str | None = None,
        *,
        password: str | None = None,
        role: Role | str = Role.OPERATOR,
        ip_address: str | None = None,
        user_agent: str | None = None,
    ) -> User:
        """Register a user; ``hashed_password`` is stored as it is. Raises AlreadyExists."""
        audit_context(self.session, ip=ip_address, user_agent=user_agent)
        return users.create(
            self.session, username=username, email=email, hashed_password=hashed_password, password=password,
            role=role, actor=self.actor,
        )  # fmt: skip

    def authenticate(
        self, username: str, password: str, *, ip_address: str | None = None, user_agent: str | None = None
    ) -> User | None:
        """The user whose password this is, else None; a failure is recorded whatever becomes of the session.

        Say the address: without one, strangers who guess make the owner wait as well. Raises Throttled, whose
        ``retry_after`` is in seconds.
        """
        audit_context(self.session, ip=ip_address, user_agent=user_agent)
        return logins.authenticate(self.session, username=username, password=password)

    def get_user(self, user_id: int) -> User:
        """Raises NotFound."""
        return UserRepository(self._reading()).require(user_id)

    def list_users(self, *, limit: int = 50, cursor: str | None = None) -> Listing[User]:
        """All users, without their password hashes."""
        return self._list("users", UserRepository(self._reading()).list_, limit, cursor)

    def set_password(self, user_id: int, password: str) -> User:
        """One's own, or anybody's as an admin. Raises NotFound, Conflict."""
        hashed = users.hash_for(user_id, password, actor=self.actor)
        return UserRepository(self.session).change(self._user(user_id), hashed_password=hashed)

    def set_user_role(self, user_id: int, role: Role | str) -> User:
        """Raises NotFound, Conflict."""
        return users.set_role(self.session, user=self._user(user_id), role=role, actor=self.actor)

    def set_user_active(self, user_id: int, active: bool) -> User:
        """Disable or enable; nobody is deleted, since the history names them. Raises NotFound, Conflict."""
        return users.set_active(self.session, user=self._user(user_id), active=active, actor=self.actor)

    # Secrets: one's own, or anybody's as an admin.

    def store_api_key(self, user_id: int, service_name: str, key_name: str, key_value: str) -> APIKey:
        """Store or replace a secret, encrypted. Raises NotFound, EncryptionError."""
        return secrets.store(
            self.session, user_id=user_id, service_name=service_name, key_name=key_name, value=key_value,
            actor=self.actor,
        )  # fmt: skip

    def list_api_keys(self, user_id: int) -> Sequence[APIKey]:
        """A user's secrets by name, without their values. Raises NotFound."""
        return secrets.list_(self.session, user_id=user_id, actor=self.actor)

    def delete_api_key(self, user_id: int, service_name: str, key_name: str) -> None:
        """Raises NotFound."""
        secrets.remove(self.session, user_id=user_id, name=f"{service_name}/{key_name}", actor=self.actor)

    # Applications and infrastructure. With a ``version_id`` an edit raises Conflict where the row has changed since.

    def register_application(self, /, name: str, command: list[str], **fields: Any) -> Application:
        """Add an application; fields as in :class:`db.specs.ApplicationSpec`. Raises AlreadyExists."""
        return applications.register(self.session, actor=self.actor, name=name, command=command, **fields)

    def edit_application(self, /, application_id: int, *, version_id: int | None = None, **fields: Any) -> Application:
        """Change some fields. Raises NotFound, AlreadyExists, Conflict."""
        rows = ApplicationRepository(self.session)
        found = rows.require(application_id)
        rows.expect(found, version_id)
        return applications.edit(self.session, application=found, actor=self.actor, **fields)

    def remove_application(self, application_id: int) -> None:
        """Remove one that was never deployed. Raises NotFound, Conflict."""
        found = ApplicationRepository(self.session).require(application_id)
        applications.remove(self.session, application=found, actor=self.actor)

    def get_application(self, application_id: int) -> Application:
        """Raises NotFound."""
        return ApplicationRepository(self._reading()).require(application_id)

    def list_applications(self, *, limit: int = 50, cursor: str | None = None) -> Listing[Application]:
        return self._list("applications", ApplicationRepository(self._reading()).list_, limit, cursor)

    def register_infrastructure(self, /, name: str, owner_id: int, **fields: Any) -> Infrastructure:
        """Add an infrastructure; fields of :class:`db.specs.InfrastructureSpec`. Raises AlreadyExists, NotFound."""
        return infrastructure.register(self.session, owner_id=owner_id, actor=self.actor, name=name, **fields)

    def edit_infrastructure(
        self, /, infrastructure_id: int, *, version_id: int | None = None, **fields: Any
    ) -> Infrastructure:
        """Change some fields. Raises NotFound, AlreadyExists, Conflict."""
        rows = InfrastructureRepository(self.session)
        found = rows.require(infrastructure_id, *rows.list_options)
        rows.expect(found, version_id)
        return infrastructure.edit(self.session, infrastructure=found, actor=self.actor, **fields)

    def remove_infrastructure(self, infrastructure_id: int) -> None:
        """Remove one that was never deployed to. Raises NotFound, Conflict."""
        rows = InfrastructureRepository(self.session)
        found = rows.require(infrastructure_id, *rows.list_options)
        infrastructure.remove(self.session, infrastructure=found, actor=self.actor)

    def get_infrastructure(self, infrastructure_id: int) -> Infrastructure:
        """With its owner; its encrypted settings are not opened. Raises NotFound."""
        row = InfrastructureRepository(self._reading()).get_with_relations(infrastructure_id)
        return found(row, f"there is no infrastructure {infrastructure_id}")

    def list_infrastructure(self, *, limit: int = 50, cursor: str | None = None) -> Listing[Infrastructure]:
        return self._list("infrastructure", InfrastructureRepository(self._reading()).list_, limit, cursor)

    # Deployments.

    def create_deployment(
        self,
        user_id: int,
        application_id: int,
        infrastructure_id: int,
        version: str,
        *,
        priority: int = 5,
        digest: str | None = None,
    ) -> Deployment:
        """Ask for a deployment; it starts after the commit. What it is to do is frozen now; ``digest``: what the
        version's content must be. Raises NotFound."""
        return deployments.create(
            self.session, user_id=user_id, application_id=application_id, infrastructure_id=infrastructure_id,
            version=version, priority=priority, digest=digest, actor=self.actor,
        )  # fmt: skip

    def update_deployment_status(
        self, deployment_id: int, status: DeploymentStatus | str, error_message: str | None = None
    ) -> Deployment:
        """Set the status of a deployment that something outside runs. Raises NotFound, Conflict."""
        return deployments.update_status(
            self.session, deployment_id=deployment_id, status=status, error_message=error_message, actor=self.actor
        )

    def cancel_deployment(self, deployment_id: int, reason: str | None = None) -> JobState:
        """Cancel a queued deployment, or ask for the end of a running one. Raises NotFound, Conflict."""
        return deployments.cancel(self.session, deployment_id=deployment_id, reason=reason, actor=self.actor)

    def retry_deployment(self, deployment_id: int) -> Deployment:
        """Put an ended deployment back to pending. Raises NotFound, Conflict."""
        return deployments.retry(self.session, deployment_id=deployment_id, actor=self.actor)

    def rollback(
        self, user_id: int, application_id: int, infrastructure_id: int, version: str | None = None
    ) -> Deployment:
        """Ask for the deployment of what succeeded there before, or of a version that did. When it succeeds, what it
        replaces becomes rolled back. Raises NotFound, Conflict."""
        return rollbacks.create(
            self.session, user_id=user_id, application_id=application_id, infrastructure_id=infrastructure_id,
            version=version, actor=self.actor,
        )  # fmt: skip

    def get_deployment(self, deployment_id: int) -> Deployment:
        """With its user, application, infrastructure and job. Raises NotFound."""
        row = DeploymentRepository(self._reading()).get_with_relations(deployment_id)
        return found(row, f"there is no deployment {deployment_id}")

    def list_deployments(
        self,
        *,
        user_id: int | None = None,
        application_id: int | None = None,
        infrastructure_id: int | None = None,
        status: DeploymentStatus | str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Listing[Deployment]:
        """Each with its user, application and infrastructure. An index serves each filter, a user with a status, and
        an application with an infrastructure; other combinations look through one of these."""
        asked = check(DeploymentFilter, {
            "user_id": user_id, "application_id": application_id, "infrastructure_id": infrastructure_id,
            "status": status,
        })  # fmt: skip
        rows = DeploymentRepository(self._reading())
        return self._list("deployments", rows.search, limit, cursor, **dict(asked))

    def read_deployment_log(self, deployment_id: int, *, after: int = 0, limit: int = 500) -> Sequence[DeploymentLog]:
        """What a deployment printed, in order; ``after`` is the id of the last piece seen. Raises NotFound."""
        asked = check(PageSpec, {"limit": limit, "after": after})
        DeploymentRepository(self._reading()).require(deployment_id)
        return DeploymentLogRepository(self.session).after(deployment_id, asked.after, limit=asked.limit)

    # The audit trail.

    def search_audit(
        self,
        *,
        resource: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        task_id: UUID | str | None = None,
        changed: str | None = None,
        to: Any = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Listing[AuditLog]:
        """``resource`` is ``type`` or ``type:id``; ``action`` may end in ``.*``; ``changed`` with ``to`` finds a
        column set to a value."""
        asked = check(AuditSearch, {
            "resource": resource, "actor": actor, "action": action, "task_id": task_id, "changed": changed, "to": to,
            "since": since, "until": until,
        })  # fmt: skip
        return self._list("audit entries", AuditLogRepository(self._reading()).search, limit, cursor, **dict(asked))

    def get_user_activity(self, user_id: int, *, limit: int = 50) -> Sequence[AuditLog]:
        """What a user did, newest first. Raises NotFound."""
        asked = check(PageSpec, {"limit": limit})
        user = UserRepository(self._reading()).require(user_id)
        return AuditLogRepository(self.session).get_user_activity(user.id, limit=asked.limit)

    def _user(self, user_id: int) -> User:
        return UserRepository(self.session).require(user_id)
