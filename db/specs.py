"""What people write and what is refused: one pydantic model per thing, checked when it is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from db.errors import InvalidInput
from db.states import AlertStatus, DeploymentStatus, Environment

M = TypeVar("M", bound=BaseModel)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _printable(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("control characters are not allowed")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value or re.search(r"[\ud800-\udfff]", value):
        raise ValueError("a NUL byte or broken Unicode is not allowed")
    return value


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an http or https address is needed")
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("characters that are not ASCII, and spaces, are written as %XX")
    if parts.username or parts.password:
        raise ValueError("a user or password in the address is not allowed")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("an absolute path is needed")
    return value


def _not_ours(value: str) -> str:
    if value.startswith("OPS_"):
        raise ValueError("names that start with OPS_ are the platform's")
    return value


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
SERVICE_AND_KEY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}/[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_VERSION = r"^[A-Za-z0-9][A-Za-z0-9._+:@/-]{0,199}$"
_EMAIL = r"^[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,255}$"
#: What fits, for people: a pattern tells them nothing.
_FITS = {
    _NAME: "a name is up to 63 letters, digits and . _ -, and begins with a letter or digit",
    _VARIABLE: "a variable's name is up to 128 letters, digits and _, and does not begin with a digit",
    SERVICE_AND_KEY: "a secret is named SERVICE/NAME, for example aws/access_key",
    _VERSION: "a version is up to 200 letters, digits and . _ + : @ / -, and begins with a letter or digit",
    _EMAIL: "an e-mail address is needed, for example alice@example.com",
}

#: A name people give: starts with a letter or digit, no spaces, 63 characters at most.
Name = Annotated[str, StringConstraints(pattern=_NAME)]
#: The key of a row.
Id = Annotated[int, Field(strict=True, gt=0, lt=2**63)]
#: One word of an argv.
Word = Annotated[str, Field(max_length=8192), AfterValidator(_no_nul)]
Argv = Annotated[list[Word], Field(min_length=1, max_length=256)]
#: The name of an environment variable; names starting with OPS_ are the platform's.
Variable = Annotated[str, StringConstraints(pattern=_VARIABLE), AfterValidator(_not_ours)]
Value = Annotated[str, Field(max_length=32_768), AfterValidator(_no_nul)]
#: A secret's name: service/key.
SecretName = Annotated[str, StringConstraints(pattern=SERVICE_AND_KEY)]
Url = Annotated[str, Field(max_length=2048), AfterValidator(_printable), AfterValidator(_http_url)]
AbsolutePath = Annotated[str, Field(max_length=4096), AfterValidator(_no_nul), AfterValidator(_absolute)]
Line = Annotated[str, Field(max_length=500), AfterValidator(_printable)]
#: What is deployed: reaches a command as OPS_VERSION, often as a part of a path, so no part of it may be ``..``.
Version = Annotated[str, StringConstraints(pattern=_VERSION)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, str_strip_whitespace=False)


class HealthGate(_Spec):
    """How often to ask whether the application is healthy before the deployment is called a success."""

    interval_seconds: float = Field(1.0, ge=0.05, le=60)
    timeout_seconds: float = Field(2.0, ge=0.1, le=60)
    attempts: int = Field(30, ge=1, le=1000)


class ApplicationConfiguration(_Spec):
    """``applications.configuration``. ``secrets`` maps a variable to the secret it gets: ``{"TOKEN": "aws/token"}``."""

    environment: dict[Variable, Value] = Field(default_factory=dict, max_length=200)
    secrets: dict[Variable, SecretName] = Field(default_factory=dict, max_length=100)
    health: HealthGate = Field(default_factory=HealthGate)
    promote: Argv | None = None
    abort: Argv | None = None
    shell: bool = False
    timeout_seconds: int = Field(3600, ge=1, le=7 * 86400)


class ApplicationSpec(_Spec):
    """A whole application as people write it."""

    name: Name
    command: Argv
    description: Line | None = None
    working_directory: AbsolutePath | None = None
    health_check_url: Url | None = None
    configuration: ApplicationConfiguration = Field(default_factory=ApplicationConfiguration)

    @model_validator(mode="after")
    def _one_word_for_a_shell(self) -> ApplicationSpec:
        if self.configuration.shell and len(self.command) != 1:
            raise ValueError("with shell, command is one word: the line that the shell reads")
        return self


class CommandSettings(_Spec):
    """Settings of the ``command`` driver: variables for every application deployed here."""

    environment: dict[Variable, Value] = Field(default_factory=dict, max_length=200)


#: The settings that each driver takes.
DRIVER_SETTINGS: dict[str, type[BaseModel]] = {"command": CommandSettings}


class InfrastructureSpec(_Spec):
    """An infrastructure as people write it."""

    name: Name
    provider: Name = "local"
    region: Line | None = None
    environment: Environment = Environment.DEV
    driver: str = "command"
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("driver")
    @classmethod
    def _known_driver(cls, value: str) -> str:
        if value not in DRIVER_SETTINGS:
            raise ValueError(f"unknown driver; known are: {', '.join(sorted(DRIVER_SETTINGS))}")
        return value

    @model_validator(mode="after")
    def _settings_fit(self) -> InfrastructureSpec:
        check(DRIVER_SETTINGS[self.driver], self.settings, "settings")
        return self


class UserSpec(_Spec):
    username: Name
    email: Annotated[str, StringConstraints(pattern=_EMAIL), AfterValidator(_no_nul)]
    hashed_password: Annotated[str, Field(max_length=1024), AfterValidator(_no_nul)] | None = None


class SecretSpec(_Spec):
    service_name: Name
    key_name: Name
    #: A shorter one could not be masked in a log: it would be found everywhere.
    value: Annotated[str, Field(min_length=4, max_length=65_536), AfterValidator(_no_nul)]


class DeploymentSpec(_Spec):
    version: Version
    priority: int = Field(5, ge=0, le=9)

    @field_validator("version")
    @classmethod
    def _no_way_up(cls, value: str) -> str:
        if ".." in value.split("/"):
            raise ValueError("no part may be '..'")
        return value


def _texts(value: JsonValue) -> Iterator[str]:
    """Every text in a document, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value if isinstance(value, list) else [*value, *value.values()]:
            yield from _texts(part)


class AuditSearch(_Spec):
    """What the audit trail is searched for; times without a zone are taken for UTC."""

    resource: Line | None = None
    actor: Line | None = None
    action: Line | None = None
    task_id: UUID | None = None
    changed: Line | None = None
    to: JsonValue = None
    since: datetime | None = None
    until: datetime | None = None

    @field_validator("since", "until")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value

    @field_validator("to")
    @classmethod
    def _storable(cls, value: JsonValue) -> JsonValue:
        json.dumps(value, allow_nan=False)
        for said in _texts(value):
            _no_nul(said)
        return value


class DeploymentFilter(_Spec):
    """Which deployments a list has."""

    user_id: Id | None = None
    application_id: Id | None = None
    infrastructure_id: Id | None = None
    status: DeploymentStatus | None = None


class AlertFilter(_Spec):
    """Which alerts a list has."""

    status: AlertStatus | None = None
    application_id: Id | None = None
    infrastructure_id: Id | None = None


class PageSpec(_Spec):
    limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 50
    after: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0


def text(value: object, what: str) -> str:
    """The value. Raises InvalidInput unless it is text, of whatever kind."""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is text")
    return value


def storable(value: object, what: str) -> str:
    """The value. Raises InvalidInput unless it is text that the database can hold."""
    try:
        return _no_nul(text(value, what))
    except ValueError:
        raise InvalidInput(f"{what} is text without NUL bytes or broken Unicode") from None


def check(model: type[M], values: dict[str, Any], where: str = "") -> M:
    """The values as their model. Raises InvalidInput: one line that names the field; never the value."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in ((where,) if where else ()) + tuple(first["loc"]) if part != "[key]")
        message = _FITS.get(first.get("ctx", {}).get("pattern", ""), first["msg"].removeprefix("Value error, "))
        raise InvalidInput(f"{path}: {message}" if path else message) from None
