"""Which deployment changed a thing shortly before something went wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from db.alerting import Condition
from db.repositories import DeploymentRepository

#: What began longer after a deployment than this is not laid at its door.
SHORTLY = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Cause:
    deployment_id: int
    says: str


def find(session: Session, seen: Condition, now: datetime) -> Cause | None:
    """The newest deployment of the thing that started shortly before; None where there is none, or the alert tells of a
    deployment itself."""
    if seen.deployment_id is not None or seen.application_id is None:
        return None
    since = seen.since or now
    found = DeploymentRepository(session).newest_started(
        seen.application_id, seen.infrastructure_id, after=since - SHORTLY, until=since
    )
    if found is None or found.started_at is None:
        return None
    after = max(0, round((since - found.started_at).total_seconds()))
    return Cause(found.id, f"it started {after} s after deployment {found.id} ({found.version})")
