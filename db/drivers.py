"""Settings of an infrastructure, by its driver: refused when they are saved, not when somebody deploys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from db.fields import Line, SecretName, Spec, Url, Value, Variable
from db.rollouts import SshSettings

#: A field of a JSON document: names, and numbers of list items, with dots between them.
JsonField = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}$")]
_Words = Annotated[list[Line], Field(min_length=1, max_length=50)]


class CommandSettings(Spec):
    """Settings of the ``command`` driver: variables for every application deployed here."""

    environment: dict[Variable, Value] = Field(default_factory=dict, max_length=200)


class WebhookSettings(Spec):
    """Settings of the ``webhook`` driver: a CI/CD system that is asked to deploy, and then how it goes.

    Fields of its answers are found by dotted names. ``{id}`` in ``status_url`` and ``cancel_url`` stands for what the
    answer has in ``id_field``; without these, addresses that the answer itself names are taken, of the same host only.
    """

    url: Url
    #: Signs every request.
    secret: SecretName
    #: Sent as a bearer token, where the system wants one.
    token: SecretName | None = None
    #: False: its answer to the request is the end of it.
    poll: bool = True
    status_url: Url | None = None
    cancel_url: Url | None = None
    cancel_method: Literal["POST", "DELETE"] = "POST"
    id_field: JsonField = "id"
    status_url_field: JsonField = "status_url"
    cancel_url_field: JsonField = "cancel_url"
    status_field: JsonField = "status"
    message_field: JsonField = "message"
    success: _Words = Field(default_factory=lambda: ["success", "succeeded", "passed"])
    failure: _Words = Field(default_factory=lambda: ["failed", "failure", "error", "canceled", "cancelled"])
    interval_seconds: float = Field(5.0, ge=0.05, le=3600)
    #: For one request and its answer.
    timeout_seconds: float = Field(30.0, ge=0.1, le=600)
    #: So many looks in a row that bring no status, and nobody can know any more.
    max_poll_failures: int = Field(60, ge=1, le=100_000)

    @model_validator(mode="after")
    def _one_meaning(self) -> WebhookSettings:
        if both := {each.lower() for each in self.success} & {each.lower() for each in self.failure}:
            raise ValueError(f"a word means success or failure, not both: {min(both)}")
        return self


class DockerTls(Spec):
    """Secrets that hold certificates and a key in PEM: whom we trust, and who we are."""

    ca: SecretName
    cert: SecretName
    key: SecretName


_HOST = r"^(unix:///[A-Za-z0-9_./-]+|tcp://[A-Za-z0-9.-]+:[0-9]{1,5}|ssh://([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?)$"
_DOCKER_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
_VOLUME = r"^[A-Za-z0-9_./][A-Za-z0-9_./-]{0,254}:/[A-Za-z0-9_./-]{0,254}(:(ro|rw))?$"


class DockerSettings(Spec):
    """Settings of the ``docker`` driver: an engine, and how applications live on it."""

    #: ``unix://``, ``tcp://`` with ``tls``, or ``ssh://`` by the worker's keys and known hosts; None: the local one.
    host: Annotated[str, StringConstraints(pattern=_HOST)] | None = None
    tls: DockerTls | None = None
    #: What serves is in this network, under the alias (None: the application's name). It is made where it is missing.
    network: Annotated[str, StringConstraints(pattern=_DOCKER_NAME)] = "ops"
    alias: Annotated[str, StringConstraints(pattern=_DOCKER_NAME)] | None = None
    pull: Literal["missing", "always", "never"] = "missing"
    registry_user: Line | None = None
    registry_password: SecretName | None = None
    restart: Literal["no", "on-failure", "unless-stopped", "always"] = "unless-stopped"
    #: ``name:/path`` or ``/path:/path``, with ``:ro`` where it is only read.
    volumes: list[Annotated[str, StringConstraints(pattern=_VOLUME)]] = Field(default_factory=list, max_length=50)
    environment: dict[Variable, Value] = Field(default_factory=dict, max_length=200)
    #: How long a container has to run on where neither its image nor the application says what healthy is.
    settle_seconds: float = Field(3.0, ge=0, le=600)
    #: Between TERM and KILL of the container that is replaced.
    stop_seconds: int = Field(10, ge=0, le=3600)
    #: So many of those that were replaced stay, stopped, with their images.
    keep: int = Field(3, ge=1, le=100)

    @model_validator(mode="after")
    def _whole(self) -> DockerSettings:
        if self.host is not None and self.host.startswith("tcp://") and self.tls is None:
            raise ValueError("tcp:// needs tls: whoever reaches an engine without it owns its machine")
        if self.tls is not None and not (self.host or "").startswith("tcp://"):
            raise ValueError("tls needs a host tcp://HOST:PORT")
        if (self.registry_user is None) != (self.registry_password is None):
            raise ValueError("registry_user and registry_password need each other")
        return self


#: The settings that each driver takes.
DRIVER_SETTINGS: dict[str, type[BaseModel]] = {
    "command": CommandSettings,
    "docker": DockerSettings,
    "ssh": SshSettings,
    "webhook": WebhookSettings,
}


#: Settings that name a secret of the infrastructure's owner, by driver; a dot leads inside.
SECRET_SETTINGS: dict[str, tuple[str, ...]] = {
    "docker": ("registry_password", "tls.ca", "tls.cert", "tls.key"),
    "ssh": ("key",),
    "webhook": ("secret", "token"),
}


def secrets_of(driver: str, settings: dict[str, Any]) -> dict[str, str]:
    """The secrets that settings name: ``{"token": "ci/token"}``."""
    found = {}
    for path in SECRET_SETTINGS.get(driver, ()):
        value: Any = settings
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[path] = value
    return found
