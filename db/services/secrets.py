"""Secrets (``api_keys``): stored encrypted, opened late, every opening recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from db.encryption import Unreadable
from db.errors import DecryptionError, InvalidInput, NotFound
from db.fields import SERVICE_AND_KEY
from db.models import APIKey, User
from db.repositories import APIKeyRepository, AuditLogRepository, UserRepository
from db.services import rights
from db.specs import SecretSpec, check, text
from db.states import Role


def store(
    session: Session, *, user_id: int, service_name: str, key_name: str, value: str, actor: User | None = None
) -> APIKey:
    """Store or replace a user's secret. Raises NotFound, InvalidInput, PermissionDenied, EncryptionError."""
    rights.require_self_or(actor, user_id, Role.ADMIN, "storing secrets of others")
    spec = check(SecretSpec, {"service_name": service_name, "key_name": key_name, "value": value})
    UserRepository(session).require(user_id)
    keys = APIKeyRepository(session)
    found = keys.get_by_name(user_id, spec.service_name, spec.key_name)
    if found is not None:
        return keys.change(found, encrypted_value=spec.value)
    return keys.add(
        APIKey(user_id=user_id, service_name=spec.service_name, key_name=spec.key_name, encrypted_value=spec.value)
    )


def list_(session: Session, *, user_id: int, actor: User | None = None) -> Sequence[APIKey]:
    """A user's secrets by name, without their values. Raises NotFound, PermissionDenied."""
    rights.require_self_or(actor, user_id, Role.ADMIN, "listing secrets of others")
    return APIKeyRepository(session).get_user_keys(UserRepository(session).require(user_id).id)


def remove(session: Session, *, user_id: int, name: str, actor: User | None = None) -> None:
    """Remove a user's secret. Raises NotFound, PermissionDenied."""
    rights.require_self_or(actor, user_id, Role.ADMIN, "removing secrets of others")
    keys = APIKeyRepository(session)
    keys.delete(_require(keys, UserRepository(session).require(user_id).id, name))


def open_all(
    session: Session,
    *,
    owner_id: int,
    wanted: Mapping[str, str],
    deployment_id: int | None = None,
    check_id: int | None = None,
    channel: str | None = None,
) -> dict[str, str]:
    """Open the secrets that a deployment, a check or a channel needs: ``{variable: name}`` gives ``{variable: value}``.

    Each opening leaves an entry: which secret, for which of them. Raises NotFound, DecryptionError.
    """
    keys, audit = APIKeyRepository(session), AuditLogRepository(session)
    opened = {}
    for variable, name in wanted.items():
        key = _require(keys, owner_id, name, with_value=True)
        value: str | Unreadable = key.encrypted_value
        if isinstance(value, Unreadable):
            raise DecryptionError(value.field, value.key_id, value.reason, what=f"secret {name}")
        opened[variable] = value
        reasons = {"deployment_id": deployment_id, "check_id": check_id, "channel": channel}
        reason = {field: value for field, value in reasons.items() if value is not None}
        audit.add("secret.opened", "secret", key.id, {"name": name} | reason)
    return opened


def split(name: str) -> tuple[str, str]:
    """``service/key`` as its parts. Raises InvalidInput."""
    if not re.fullmatch(SERVICE_AND_KEY, text(name, "a secret's name")):
        raise InvalidInput(f"{name[:130]!r} is no secret's name; it reads SERVICE/NAME, for example aws/access_key")
    service, _, key = name.partition("/")
    return service, key


def _require(keys: APIKeyRepository, user_id: int, name: str, *, with_value: bool = False) -> APIKey:
    key = keys.get_by_name(user_id, *split(name), with_value=with_value)
    if key is None:
        raise NotFound(f"there is no secret {name}", hint=f"ops secret set {name}")
    return key
