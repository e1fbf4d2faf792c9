"""Channels and routes: who is told of alerts, and by which way."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from db.channels import ChannelSpec, RouteSpec, config_of
from db.errors import Conflict, DecryptionError, InvalidInput
from db.fields import check
from db.models import NotificationChannel, NotificationRoute, User
from db.repositories import AuditLogRepository, ChannelRepository, NotificationRepository, RouteRepository
from db.services import rights
from db.settings import get_settings
from db.states import ChannelKind, Role

#: What has failed no longer ago than this is told when its channel is enabled again.
AGAIN = timedelta(days=1)


def add(
    session: Session, *, name: str, kind: ChannelKind | str, config: Mapping[str, Any], rate_limit: int = 10,
    actor: User | None = None,
) -> NotificationChannel:  # fmt: skip
    """Register a channel; its configuration is stored encrypted. Raises InvalidInput, AlreadyExists, EncryptionError,
    PermissionDenied."""
    rights.require(actor, Role.ADMIN, "adding channels")
    spec = check(ChannelSpec, {"name": name, "kind": kind, "rate_limit": rate_limit})
    stored = config_of(spec.kind, config).model_dump(mode="json", exclude_none=True)
    return ChannelRepository(session).add(
        NotificationChannel(
            name=spec.name, kind=spec.kind, encrypted_config=json.dumps(stored), rate_limit=spec.rate_limit
        )
    )


def edit(
    session: Session, *, channel: NotificationChannel, name: str | None = None, kind: ChannelKind | str | None = None,
    config: Mapping[str, Any] | None = None, rate_limit: int | None = None, actor: User | None = None,
) -> NotificationChannel:  # fmt: skip
    """Change what is not None; ``config`` is all that reaching it takes, and another kind needs one. Raises
    InvalidInput, AlreadyExists, Conflict, EncryptionError, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "editing channels")
    given = {"name": name, "kind": kind, "rate_limit": rate_limit}
    current = {field: getattr(channel, field) for field in ChannelSpec.model_fields}
    spec = check(ChannelSpec, current | {field: value for field, value in given.items() if value is not None})
    if spec.kind is not channel.kind and config is None:
        raise InvalidInput("another kind is reached in another way: say how")
    values = spec.model_dump()
    if config is not None:
        stored = config_of(spec.kind, config).model_dump(mode="json", exclude_none=True)
        before: Any = channel.encrypted_config
        if not isinstance(before, str) or json.loads(before) != stored:
            values["encrypted_config"] = json.dumps(stored)
    return ChannelRepository(session).change(channel, **values)


def remove(session: Session, *, channel: NotificationChannel, actor: User | None = None) -> None:
    """Remove a channel with its routes, and what it was told. Raises Conflict, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "removing channels")
    ChannelRepository(session).delete(channel)


def disable(session: Session, *, channel: NotificationChannel, because: str, actor: User | None = None) -> None:
    """Tell nobody by this channel for now. Raises Conflict, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "disabling channels")
    if not ChannelRepository(session).disable(channel.id, because, is_broken=False):
        raise Conflict(f"channel {channel.name} is disabled already")


def enable(session: Session, *, channel: NotificationChannel, actor: User | None = None) -> int:
    """Tell again, also what could not be told within the last day: answers how many. Raises Conflict,
    PermissionDenied."""
    rights.require(actor, Role.ADMIN, "enabling channels")
    if not ChannelRepository(session).enable(channel.id):
        raise Conflict(f"channel {channel.name} is enabled already")
    return NotificationRepository(session).try_again(channel.id, AGAIN)


def open_config(channel: NotificationChannel) -> dict[str, Any]:
    """What reaching it takes, in the clear. Raises DecryptionError."""
    config = stored_config(channel)
    if channel.kind is ChannelKind.WEBHOOK:
        config.setdefault("secret", signing_key(channel.name))
    return config


def stored_config(channel: NotificationChannel) -> dict[str, Any]:
    """As it was given, in the clear. Raises DecryptionError."""
    stored: Any = channel.encrypted_config
    if not isinstance(stored, str):
        error: DecryptionError = stored.error
        raise error
    config: dict[str, Any] = json.loads(stored)
    return config


def signing_key(name: str) -> str:
    """The key that signs a webhook's messages where none is given: of SECRET_KEY and the channel's name. Raises
    SettingsError."""
    secret = get_settings().require_secret_key()
    return hmac.digest(secret, b"ops webhook\0" + name.lower().encode(), hashlib.sha256).hex()


def show_key(session: Session, *, channel: NotificationChannel, actor: User | None = None) -> str:
    """The key that signs a webhook's messages, for whoever sets up its receiver; that it was shown is recorded. Raises
    Conflict, DecryptionError, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "looking at a channel's key")
    if channel.kind is not ChannelKind.WEBHOOK:
        raise Conflict(f"channel {channel.name} is no webhook; only those are signed")
    key = str(open_config(channel)["secret"])
    AuditLogRepository(session).add("channel.key_shown", "channel", str(channel.id), {"name": channel.name})
    return key


def add_route(
    session: Session, *, channel: NotificationChannel, actor: User | None = None, **values: Any
) -> NotificationRoute:
    """Send alerts to a channel: ``severity`` (at least), ``matchers``, ``group_by``, ``wait_seconds``,
    ``repeat_seconds``. Raises InvalidInput, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "adding routes")
    spec = check(RouteSpec, values)
    return RouteRepository(session).add(NotificationRoute(channel_id=channel.id, **spec.model_dump()))


def remove_route(session: Session, *, route_id: int, actor: User | None = None) -> None:
    """Raises NotFound, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "removing routes")
    routes = RouteRepository(session)
    routes.delete(routes.require(route_id))
