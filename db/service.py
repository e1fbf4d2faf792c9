"""The front door for applications that embed the layer."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from db.connection import audit_context
from db.models import APIKey, Application, Deployment, Infrastructure, User
from db.services import applications, deployments, infrastructure, secrets, users
from db.states import DeploymentStatus, JobState, Role


class DatabaseService:
    """What an application does, in one session's transaction; every change is audited.

    Without an actor it acts as ``system``, which is trusted; with one, the actor's rights are checked and the actor
    stands in the audit trail. It never commits: that is the session's owner's to do.
    """

    def __init__(self, session: Session, actor: User | None = None) -> None:
        self.session = session
        self.actor = actor
        if actor is not None:
            audit_context(session, actor=actor.username, actor_id=actor.id, actor_type="user")
        else:
            audit_context(session)

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
        """Register a user; ``hashed_password`` is stored as it is. Raises AlreadyExists, InvalidInput."""
        audit_context(self.session, ip=ip_address, user_agent=user_agent)
        return users.create(
            self.session, username=username, email=email, hashed_password=hashed_password, password=password,
            role=role, actor=self.actor,
        )  # fmt: skip

    def authenticate(
        self, username: str, password: str, *, ip_address: str | None = None, user_agent: str | None = None
    ) -> User | None:
        """The user whose password this is, else None. Never raises for a hash it does not know."""
        audit_context(self.session, ip=ip_address, user_agent=user_agent)
        return users.authenticate(self.session, username=username, password=password)

    def store_api_key(self, user_id: int, service_name: str, key_name: str, key_value: str) -> APIKey:
        """Store or replace a secret, encrypted. Raises NotFound, InvalidInput."""
        return secrets.store(
            self.session, user_id=user_id, service_name=service_name, key_name=key_name, value=key_value,
            actor=self.actor,
        )  # fmt: skip

    def register_application(self, name: str, command: list[str], **fields: Any) -> Application:
        """Add an application; fields as in :class:`db.specs.ApplicationSpec`. Raises AlreadyExists, InvalidInput."""
        return applications.register(self.session, actor=self.actor, name=name, command=command, **fields)

    def register_infrastructure(self, name: str, owner_id: int, **fields: Any) -> Infrastructure:
        """Add an infrastructure; fields of :class:`db.specs.InfrastructureSpec`. Raises AlreadyExists, InvalidInput."""
        return infrastructure.register(self.session, owner_id=owner_id, actor=self.actor, name=name, **fields)

    def create_deployment(
        self, user_id: int, application_id: int, infrastructure_id: int, version: str, *, priority: int = 5
    ) -> Deployment:
        """Ask for a deployment; it starts after the commit. Raises NotFound, InvalidInput, PermissionDenied."""
        return deployments.create(
            self.session, user_id=user_id, application_id=application_id, infrastructure_id=infrastructure_id,
            version=version, priority=priority, actor=self.actor,
        )  # fmt: skip

    def update_deployment_status(
        self, deployment_id: int, status: DeploymentStatus | str, error_message: str | None = None
    ) -> Deployment:
        """Set the status of a deployment that something outside runs. Raises NotFound, InvalidInput, Conflict."""
        return deployments.update_status(
            self.session, deployment_id=deployment_id, status=status, error_message=error_message, actor=self.actor
        )

    def cancel_deployment(self, deployment_id: int, reason: str | None = None) -> JobState:
        """Cancel a queued deployment, or ask for the end of a running one. Raises NotFound, Conflict."""
        return deployments.cancel(self.session, deployment_id=deployment_id, reason=reason, actor=self.actor)

    def retry_deployment(self, deployment_id: int) -> Deployment:
        """Put an ended deployment back to pending. Raises NotFound, Conflict."""
        return deployments.retry(self.session, deployment_id=deployment_id, actor=self.actor)
