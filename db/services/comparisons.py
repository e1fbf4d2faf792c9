"""What a deployment would change against what runs now: secrets by name only, variables without their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db import frozen
from db.frozen import Frozen
from db.models import Application, Deployment, Infrastructure
from db.releases import Reference
from db.repositories import DeploymentRepository
from db.services import plans
from db.specs import DeploymentSpec, check
from db.states import DeploymentStatus

#: Variables may hold what is nobody else's, whatever they are called: that they differ is shown, not how.
_UNSHOWN = "environment."
HIDDEN = "(not shown)"


@dataclass(frozen=True, slots=True)
class Change:
    """One field: what it is where it runs now (None: it is not there), and what it would be."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """What would be deployed, against the last success there (None: there was none)."""

    what: Frozen
    version: str
    release: Reference | None
    digest: str
    runs: Deployment | None
    #: The newest that ended otherwise since: what runs may be a part of it.
    since: Deployment | None
    #: False: what runs was deployed by a release that did not freeze it; then only versions are compared.
    is_known: bool
    changes: tuple[Change, ...]


def compare(
    session: Session,
    *,
    application: Application,
    infrastructure: Infrastructure,
    version: str,
    digest: str | None = None,
) -> Comparison:
    """Raises InvalidInput where it could not be deployed. Writes nothing."""
    spec = check(DeploymentSpec, {"version": version, "digest": digest})
    what = plans.now(application, infrastructure)
    release = plans.release_of(what, spec.version)
    rows = DeploymentRepository(session)
    runs = rows.latest(application.id, infrastructure.id, DeploymentStatus.SUCCESS)
    last = rows.latest_begun(application.id, infrastructure.id)
    stored = rows.get_frozen(runs.id) if runs is not None else None
    old = stored.frozen if stored is not None else None
    new = what.document()
    known = release.digest if release is not None and spec.digest is None else spec.digest
    changes = _differences(
        {"version": runs.version if runs else None, "content": runs.release_digest if runs else None}
        | _flat(old or {}),
        {"version": spec.version, "content": known} | (_flat(new) if old is not None or runs is None else {}),
    )
    since = last if last is not None and runs is not None and last.id != runs.id else None
    return Comparison(
        what, spec.version, release, frozen.digest(new), runs, since, runs is None or old is not None, changes
    )


def with_content(changes: tuple[Change, ...], found: str) -> tuple[Change, ...]:
    """The changes with what the version's content was found to be."""
    before = next((each.before for each in changes if each.field == "content"), None)
    rest = [each for each in changes if each.field != "content"]
    return (*rest, Change("content", before, found)) if before != found else tuple(rest)


def _flat(value: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested objects as ``configuration.health.attempts``; what is empty is left out."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        if isinstance(each, dict):
            found |= _flat(each, f"{path}{name}.")
        elif each not in (None, [], ""):
            found[f"{path}{name}"] = each
    return found


def _differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[Change, ...]:
    names = [*after, *(name for name in before if name not in after)] if len(after) > 2 else list(after)
    return tuple(
        Change(name, *(_shown(name, each.get(name)) for each in (before, after)))
        for name in names
        if before.get(name) != after.get(name)
    )


def _shown(name: str, value: Any) -> Any:
    return HIDDEN if value is not None and _UNSHOWN in name else value
