"""Channels in a document, with their routes. What is secret is named (SERVICE/NAME, of whoever applies it), never
written; what is not spoken of stays, and how a channel is reached is not told by an export.

A channel holds a copy of the secret, and of which one it was (``taken``): one that was stored anew since is taken
again, and otherwise none is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.channels import CHANNEL_CONFIGS, SECRET_FIELDS, ChannelSpec, RouteSpec, config_of
from db.errors import InvalidInput, NotFound, OpsError
from db.fields import SecretName
from db.models import NotificationChannel, User
from db.repositories import APIKeyRepository, RouteRepository
from db.services import channels, rights, secrets
from db.services.declared.kind import At, Choice, Found, Kind
from db.specs import check
from db.states import ChannelKind, Role

#: What stands for a secret while the rest is checked.
_STAND_IN = "https://secret.invalid/"
_HIDDEN = "(not shown)"


class DeclaredChannel(ChannelSpec):
    """A channel. ``config``: how it is reached, but for what is secret; ``secrets``: which secret is which field;
    ``routes``: all of its routes. What is left out of these three stays as it is."""

    config: dict[str, Any] | None = None
    secrets: dict[str, SecretName] | None = None
    routes: list[RouteSpec] | None = Field(None, max_length=100)

    @model_validator(mode="after")
    def _nothing_secret(self) -> DeclaredChannel:
        allowed = SECRET_FIELDS[self.kind]
        for field in self.secrets or ():
            if field not in allowed:
                raise InvalidInput(f"secrets.{field[:60]}: secrets of this kind are: {', '.join(allowed)}")
            if field in (self.config or ()):
                raise InvalidInput(f"config.{field}: it stands in secrets as well")
        if self.config is None:
            return self
        for field in self.config:
            if field == "taken" or allowed.get(field):
                raise InvalidInput(
                    f"config.{field}: a secret is named, not written: secrets: {{{field}: SERVICE/NAME}}"
                )
        needed = {field for field in allowed if field not in self.config and field != "secret"}
        if "username" not in self.config:
            needed -= {"password"}
        whole = check(CHANNEL_CONFIGS[self.kind], dict.fromkeys(needed, _STAND_IN) | self.config, "config")
        written = whole.model_dump(mode="json", exclude_defaults=True)
        self.config = {field: value for field, value in written.items() if field not in needed}
        return self


class Channels(Kind):
    key = "channels"
    noun = "channel"
    spec = DeclaredChannel
    choices = (
        Choice(
            "kind", "config", {kind.value: spec for kind, spec in CHANNEL_CONFIGS.items()},
            elsewhere={kind.value: fields | {"taken": True} for kind, fields in SECRET_FIELDS.items()},
        ),
    )  # fmt: skip

    def found(self, session: Session) -> Iterable[Found]:
        routes = RouteRepository(session).all_()
        for row in session.scalars(select(NotificationChannel).order_by(func.lower(NotificationChannel.name))):
            written = [_route(each) for each in routes if each.channel_id == row.id]
            values = self.stored(row.name, {"kind": row.kind, "rate_limit": row.rate_limit})
            yield Found(row, row.name, values | _reached(row) | ({"routes": written} if written else {}))

    def exported(self, found: Found) -> dict[str, Any]:
        return {field: value for field, value in found.values.items() if field not in ("config", "secrets")}

    def refer(self, session: Session, values: dict[str, Any], actor: User) -> dict[str, Any]:
        if "config" in values or "secrets" in values:
            # Also where nothing differs: the answer would tell what is stored.
            rights.require(actor, Role.ADMIN, "saying how channels are reached")
        if "secrets" not in values:
            return values
        named = {}
        for field, name in values["secrets"].items():
            key = APIKeyRepository(session).get_by_name(actor.id, *secrets.split(name))
            if key is None:
                missing = NotFound(f"there is no secret {name}", hint=f"ops secret set {name}")
                raise At(("secrets", field), missing)
            named[field] = _stamp(name, key.updated_at.isoformat())
        return values | {"secrets": named}

    def compared(self, found: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        there = {field: value for field, value in found.items() if field in wanted or field == "rate_limit"}
        if "routes" in wanted:
            there.setdefault("routes", [])
        if "config" in wanted:
            kept = SECRET_FIELDS[ChannelKind(wanted["kind"])].keys() - wanted["config"].keys()
            there["config"] = {
                field: value if value == wanted["config"].get(field) else _HIDDEN
                for field, value in found.get("config", {}).items()
                if field not in kept
            }
        return there, wanted

    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None:
        if "config" not in values and "secrets" not in values:
            raise InvalidInput("it is new, so config and secrets must say how it is reached")
        kind = ChannelKind(values["kind"])
        config = _whole(session, name, kind, {}, values, actor)
        rate = values.get("rate_limit", ChannelSpec.model_fields["rate_limit"].default)
        made = channels.add(session, name=name, kind=kind, config=config, rate_limit=rate, actor=actor)
        _make_routes(session, made, values, actor)

    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None:
        kind = ChannelKind(values["kind"])
        stored = _stored(row) if kind is row.kind else {}
        config = None
        if "config" in values or "secrets" in values or kind is not row.kind:
            config = _whole(session, name, kind, stored, values, actor)
        rate = values.get("rate_limit", ChannelSpec.model_fields["rate_limit"].default)
        channels.edit(session, channel=row, actor=actor, name=name, kind=kind, rate_limit=rate, config=config)
        _make_routes(session, row, values, actor)

    def remove(self, session: Session, row: Any, actor: User) -> None:
        channels.remove(session, channel=row, actor=actor)


def _whole(
    session: Session, name: str, kind: ChannelKind, stored: dict[str, Any], values: dict[str, Any], actor: User
) -> dict[str, Any]:
    """How the channel is reached from now on. Raises At, InvalidInput, NotFound, DecryptionError."""
    fields, taken = SECRET_FIELDS[kind], dict(stored.get("taken", {}))
    config = {field: value for field, value in stored.items() if field != "taken"}
    if "config" in values:
        config = {field: value for field, value in config.items() if field in fields} | values["config"]
        taken = {field: stamp for field, stamp in taken.items() if field not in values["config"]}
    if "secrets" in values:
        wanted = values["secrets"]
        gone = [field for field in config if field not in wanted and (fields.get(field) or field in taken)]
        config = {field: value for field, value in config.items() if field not in gone}
        fresh = {field: stamp.partition(" of ")[0] for field, stamp in wanted.items() if taken.get(field) != stamp}
        opened = secrets.open_all(session, owner_id=actor.id, wanted=fresh, channel=name)
        config, taken = config | opened, wanted
    try:
        return config_of(kind, config | ({"taken": taken} if taken else {})).model_dump(mode="json", exclude_none=True)
    except InvalidInput as error:
        place, colon, said = str(error).partition(": ")
        field = place.partition(".")[0]
        around = "secrets" if field in values.get("secrets", ()) else "config"
        raise At((around, field) if colon else (), InvalidInput(said if colon else place)) from None


def _stored(row: NotificationChannel) -> dict[str, Any]:
    """How it is reached; nothing, where that cannot be opened."""
    stored: Any = row.encrypted_config
    found: dict[str, Any] = json.loads(stored) if isinstance(stored, str) else {}
    return found


def _reached(row: NotificationChannel) -> dict[str, Any]:
    """``config`` and ``secrets`` of a row, in fewest words."""
    stored, fields = _stored(row), SECRET_FIELDS[row.kind]
    taken = stored.pop("taken", {})
    try:
        written = check(CHANNEL_CONFIGS[row.kind], stored).model_dump(mode="json", exclude_defaults=True)
    except InvalidInput:
        written = stored
    by_hand = {field: "(set by hand)" for field in written if fields.get(field) and field not in taken}
    config = {field: value for field, value in written.items() if not fields.get(field) and field not in taken}
    return {"config": config, "secrets": taken | by_hand}


def _stamp(name: str, at: str) -> str:
    """Which secret, and since when it is what it is."""
    return f"{name} of {at}"


def _route(row: Any) -> dict[str, Any]:
    values = {field: getattr(row, field) for field in RouteSpec.model_fields}
    return check(RouteSpec, values).model_dump(mode="json", exclude_defaults=True)


def _make_routes(session: Session, channel: NotificationChannel, values: dict[str, Any], actor: User) -> None:
    """Make its routes those that are wanted, in this order; those before the first difference stay. Raises At."""
    if "routes" not in values:
        return
    wanted = values["routes"]
    there = [each for each in RouteRepository(session).all_() if each.channel_id == channel.id]
    same = 0
    while same < min(len(wanted), len(there)) and _route(there[same]) == wanted[same]:
        same += 1
    for row in there[same:]:
        channels.remove_route(session, route_id=row.id, actor=actor)
    for number, route in enumerate(wanted[same:], same):
        try:
            channels.add_route(session, channel=channel, actor=actor, **route)
        except OpsError as error:
            raise At(("routes", number), error) from None
