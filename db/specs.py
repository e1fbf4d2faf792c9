"""What people write and what is refused: one pydantic model per thing, checked when it is saved.

The fields they are made of are in :mod:`db.fields`, the settings of drivers in :mod:`db.drivers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, field_validator, model_validator

from db.drivers import DRIVER_SETTINGS, CommandSettings
from db.fields import (
    EMAIL,
    SERVICE_AND_KEY,
    AbsolutePath,
    Argv,
    Id,
    Line,
    Name,
    SecretName,
    Spec,
    Url,
    Value,
    Variable,
    Version,
    Word,
    check,
    no_nul,
    storable,
    text,
)
from db.releases import Artifact, Digest
from db.rollouts import HostSteps, Rollout
from db.states import AlertStatus, CheckKind, CheckState, DeploymentStatus, Environment

__all__ = [
    "DRIVER_SETTINGS", "SERVICE_AND_KEY", "AbsolutePath", "AlertFilter", "ApplicationConfiguration", "ApplicationSpec",
    "Argv", "AuditSearch", "BeatSpec", "CommandSettings", "DeploymentFilter", "DeploymentSpec", "HealthGate", "Id",
    "InfrastructureSpec", "Line", "Name", "PageSpec", "SecretName", "SecretSpec", "Spec", "Url", "UserSpec", "Value",
    "Variable", "Version", "Word", "check", "no_nul", "storable", "text",
]  # fmt: skip


class HealthGate(Spec):
    """How often to ask whether the application is healthy before the deployment is called a success."""

    interval_seconds: float = Field(1.0, ge=0.05, le=60)
    timeout_seconds: float = Field(2.0, ge=0.1, le=60)
    attempts: int = Field(30, ge=1, le=1000)


class ApplicationConfiguration(Spec):
    """``applications.configuration``. ``secrets`` maps a variable to the secret it gets: ``{"TOKEN": "aws/token"}``."""

    environment: dict[Variable, Value] = Field(default_factory=dict, max_length=200)
    secrets: dict[Variable, SecretName] = Field(default_factory=dict, max_length=100)
    health: HealthGate = Field(default_factory=HealthGate)
    promote: Argv | None = None
    abort: Argv | None = None
    shell: bool = False
    timeout_seconds: int = Field(3600, ge=1, le=7 * 86400)
    #: Where the content of a version is, see :mod:`db.releases`; a relative path is one of the working directory.
    artifact: Artifact | None = None
    rollout: Rollout = Field(default_factory=Rollout)
    steps: HostSteps = Field(default_factory=HostSteps)


class ApplicationSpec(Spec):
    """A whole application as people write it."""

    name: Name
    #: May be empty where there is an artifact, for a driver that needs no command.
    command: Annotated[list[Word], Field(max_length=256)]
    description: Line | None = None
    working_directory: AbsolutePath | None = None
    health_check_url: Url | None = None
    configuration: ApplicationConfiguration = Field(default_factory=ApplicationConfiguration)

    @model_validator(mode="after")
    def _one_word_for_a_shell(self) -> ApplicationSpec:
        if self.configuration.shell and len(self.command) != 1:
            raise ValueError("with shell, command is one word: the line that the shell reads")
        if not self.command and self.configuration.artifact is None:
            raise ValueError("command: one is needed, or an artifact")
        return self


class InfrastructureSpec(Spec):
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


class UserSpec(Spec):
    username: Name
    email: Annotated[str, StringConstraints(pattern=EMAIL), AfterValidator(no_nul)]
    hashed_password: Annotated[str, Field(max_length=1024), AfterValidator(no_nul)] | None = None


class SecretSpec(Spec):
    service_name: Name
    key_name: Name
    #: A shorter one could not be masked in a log: it would be found everywhere.
    value: Annotated[str, Field(min_length=4, max_length=65_536), AfterValidator(no_nul)]


class DeploymentSpec(Spec):
    version: Version
    #: What the content must be; None: what it is found to be.
    digest: Digest | None = None
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


class AuditSearch(Spec):
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
            no_nul(said)
        return value


class DeploymentFilter(Spec):
    """Which deployments a list has."""

    user_id: Id | None = None
    application_id: Id | None = None
    infrastructure_id: Id | None = None
    status: DeploymentStatus | None = None


class AlertFilter(Spec):
    """Which alerts a list has."""

    status: AlertStatus | None = None
    application_id: Id | None = None
    infrastructure_id: Id | None = None


class CheckFilter(Spec):
    """Which checks a list has."""

    state: CheckState | None = None
    kind: CheckKind | None = None
    application_id: Id | None = None
    infrastructure_id: Id | None = None


class BeatSpec(Spec):
    """What a heartbeat reports."""

    token: UUID
    signal: Literal["ok", "fail", "start"] = "ok"


class PageSpec(Spec):
    limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 50
    after: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
