"""A document: what may stand in it, compared with what there is, and made so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from db.connection import savepoint
from db.errors import InvalidInput, OpsError
from db.models import User
from db.services.declared.applications import Applications
from db.services.declared.channels import Channels
from db.services.declared.checks import Checks
from db.services.declared.infrastructure import Infrastructures
from db.services.declared.kind import At, Found, Kind, Path
from db.services.declared.rules import Rules
from db.services.declared.schedules import Schedules

#: In the order in which they need each other.
KINDS: tuple[Kind, ...] = (Applications(), Infrastructures(), Schedules(), Checks(), Rules(), Channels())
#: Of many mistakes so many are told of.
MOST_PROBLEMS = 20


class Wrong(InvalidInput):
    """The document is not one. ``problems`` are its mistakes: where, and what fits there."""

    def __init__(self, problems: list[tuple[Path, str]]) -> None:
        path, said = problems[0]
        super().__init__(f"{'.'.join(map(str, path))}: {said}" if path else said)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; ``fields`` maps a place in the thing to its old and new value (None: not set)."""

    kind: str
    name: str
    action: str
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, or would be; ``unchanged`` things are as the document has them."""

    changes: list[Change]
    unchanged: int


class _Undo(Exception):
    """Takes back what a dry run has done."""


def apply(session: Session, *, document: Any, actor: User, prune: bool = False, dry_run: bool = False) -> Applied:
    """Make it so, in the session's transaction: what the document names is created or changed; ``prune`` removes what
    it does not name, of the kinds that it has. A dry run does the same, and takes it back.

    Raises Wrong, and At where the database or a right is in the way; then nothing is changed.
    """
    wanted = _wanted(document)
    steps, unchanged = [], 0
    for kind in KINDS:
        if kind.key in wanted:
            there = {each.name.lower(): each for each in kind.found(session)}
            _refer(session, kind, wanted[kind.key], actor)
            of_kind = list(_compare(kind, wanted[kind.key], there, prune))
            unchanged += len(wanted[kind.key]) - sum(step.change.action != "remove" for step in of_kind)
            steps += of_kind
    changes = [step.change for step in steps]
    # What needs something else is removed before it.
    ordered = [each for each in steps if each.change.action != "remove"]
    ordered += [each for each in reversed(steps) if each.change.action == "remove"]
    with suppress(_Undo), savepoint(session):
        for step in ordered:
            step.carry_out(session, actor)
        session.flush()
        _end(dry_run)
    return Applied(changes, unchanged)


def _end(dry_run: bool) -> None:
    if dry_run:
        raise _Undo


def export(session: Session) -> dict[str, dict[str, Any]]:
    """The document that says what there is."""
    return {kind.key: {each.name: kind.exported(each) for each in kind.found(session)} for kind in KINDS}


@dataclass(frozen=True, slots=True)
class _Step:
    kind: Kind
    change: Change
    values: dict[str, Any]
    there: Found | None

    def carry_out(self, session: Session, actor: User) -> None:
        name = self.change.name
        try:
            if self.there is None:
                self.kind.create(session, name, self.values, actor)
            elif self.change.action == "remove":
                self.kind.remove(session, self.there.row, actor)
            else:
                self.kind.change(session, self.there.row, name, self.values, actor)
        except At as error:
            raise At((self.kind.key, name, *error.path), error.error) from None
        except OpsError as error:
            raise At((self.kind.key, name), error) from None


def _wanted(document: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """The document's things by kind and name, in fewest words. Raises Wrong."""
    wrong: list[tuple[Path, str]] = []
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise Wrong([((), f"a document has {', '.join(kind.key for kind in KINDS)}")])
    kinds = {kind.key: kind for kind in KINDS}
    for key, things in document.items():
        if key not in kinds:
            wrong.append(((key,), f"unknown; known are: {', '.join(kinds)}"))
        elif things is not None and not isinstance(things, dict):
            wrong.append(((key,), "names and their fields are needed"))
        else:
            wrong += _mistakes(kinds[key], things or {})
    if wrong:
        raise Wrong(wrong[:MOST_PROBLEMS])
    return {
        key: {name: kinds[key].normal(name, values) for name, values in (things or {}).items()}
        for key, things in document.items()
    }


def _refer(session: Session, kind: Kind, wanted: dict[str, dict[str, Any]], actor: User) -> None:
    """Look up what the values name. Raises At."""
    for name, values in wanted.items():
        try:
            wanted[name] = kind.refer(session, values, actor)
        except At as error:
            raise At((kind.key, name, *error.path), error.error) from None
        except OpsError as error:
            raise At((kind.key, name), error) from None


def _mistakes(kind: Kind, things: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    seen: dict[str, str] = {}
    for name, values in things.items():
        if (other := seen.setdefault(str(name).lower(), name)) != name:
            yield (kind.key, name), f"the same name as {other}: capitals make no difference"
        for path, said in kind.wrong(name, values):
            yield (kind.key, name, *(() if path == ("name",) and "name" not in (values or ()) else path)), said


def _compare(kind: Kind, wanted: dict[str, dict[str, Any]], there: dict[str, Found], prune: bool) -> Iterator[_Step]:
    for name, values in wanted.items():
        found = there.get(name.lower())
        before, after = ({}, values) if found is None else kind.compared(found.values, values)
        old = {} if found is None else _flat(before | {"name": found.name})
        new = _flat(after | {"name": name})
        places = [*old, *(place for place in new if place not in old)]
        fields = {place: (old.get(place), new.get(place)) for place in places if old.get(place) != new.get(place)}
        if found is None:
            fields.pop("name")
            yield _Step(kind, Change(kind.noun, name, "create", fields), values, None)
        elif fields:
            yield _Step(kind, Change(kind.noun, name, "change", fields), values, found)
    if prune:
        names = {name.lower() for name in wanted}
        for key, found in there.items():
            if key not in names:
                yield _Step(kind, Change(kind.noun, found.name, "remove"), {}, found)


def _flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Values by their place: ``configuration.environment.LEVEL``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{place}{name}.")
        else:
            flat[f"{place}{name}"] = value
    return flat
