"""The way back: a deployment of its own, of what succeeded at a place before."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from db.errors import Conflict, NotFound
from db.frozen import Frozen
from db.models import Deployment, User
from db.repositories import ApplicationRepository, DeploymentRepository, InfrastructureRepository, UserRepository
from db.services import deployments, plans, rights
from db.specs import DeploymentSpec, check
from db.states import DeploymentStatus, Role


@dataclass(frozen=True, slots=True)
class WayBack:
    """From where (the last deployment that changed something there), and to what: one that has succeeded there."""

    replaced: Deployment
    target: Deployment


def create(
    session: Session,
    *,
    user_id: int,
    application_id: int,
    infrastructure_id: int,
    version: str | None = None,
    actor: User | None = None,
) -> Deployment:
    """Ask for the deployment of what succeeded there before what was put there last; with a version, of the last
    success with that one. It does what that deployment did, at the place as it is reached now.

    When it succeeds, the deployment that it replaces (``rollback_deployment_id``) becomes ``rolled_back``, if that had
    succeeded. Raises NotFound, InvalidInput, Conflict (one waits or runs there), PermissionDenied.
    """
    user = UserRepository(session).require(user_id)
    rights.require(user, Role.OPERATOR, "deploying")
    if actor is not None and actor.id != user_id:
        rights.require(actor, Role.ADMIN, "deploying for others")
    # Two who ask at once would both find that nothing waits there.
    application = ApplicationRepository(session).require(application_id)
    place = InfrastructureRepository(session).require(infrastructure_id)
    DeploymentRepository(session).lock_way_back(application.id, place.id)
    way = find(session, application_id=application_id, infrastructure_id=infrastructure_id, version=version)
    return deployments.add(
        session, _again(session, way.target), user_id=user_id, application_id=application_id,
        infrastructure_id=infrastructure_id, version=way.target.version, digest=way.target.release_digest,
        replaces=way.replaced.id,
    )  # fmt: skip


def find(session: Session, *, application_id: int, infrastructure_id: int, version: str | None = None) -> WayBack:
    """What would be replaced, and by what. Raises NotFound, InvalidInput, Conflict."""
    if version is not None:
        version = check(DeploymentSpec, {"version": version}).version
    rows = DeploymentRepository(session)
    places = InfrastructureRepository(session)
    application = ApplicationRepository(session).require(application_id)
    where = (application.id, places.require(infrastructure_id, *places.list_options).id)
    if (alive := rows.latest(*where, DeploymentStatus.PENDING, DeploymentStatus.RUNNING)) is not None:
        raise Conflict(
            f"deployment {alive.id} is {alive.status.value} there; a rollback would come after it",
            hint=f"ops deployment cancel {alive.id}, or wait for it",
        )
    replaced = rows.latest_begun(*where)
    if replaced is None:
        raise NotFound("nothing was ever deployed there", hint="ops deployment list")
    if version == replaced.version and replaced.status is DeploymentStatus.SUCCESS:
        raise Conflict(f"{version} is what runs there since deployment {replaced.id}")
    target = rows.good_before(replaced, version=version)
    if target is None:
        what = f"{version} has never succeeded there" if version else "nothing else has succeeded there before"
        raise NotFound(f"there is no way back: {what}", hint="ops deployment list --status success")
    return WayBack(replaced, target)


def _again(session: Session, target: Deployment) -> Frozen:
    """What the target did, at the place as it is now; what an older release did, with the application as it is now."""
    application = ApplicationRepository(session).require(target.application_id)
    places = InfrastructureRepository(session)
    now = plans.now(application, places.require(target.infrastructure_id, *places.list_options))
    found = DeploymentRepository(session).get_frozen(target.id)
    before = plans.resolved(found) if found is not None else None
    return before.model_copy(update={"driver": now.driver, "settings": now.settings}) if before else now
