"""How people are told of alerts: what each kind of channel wants, what a route and a silence are made of."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, field_validator, model_validator

from db.fields import EMAIL, Line, Name, Spec, Url, Value, check, no_nul
from db.states import ChannelKind, Severity

#: What stands for something in a template: ``$title``.
FIELDS = (
    "id", "status", "title", "severity", "alert_type", "message", "labels", "started_at", "fired_at", "resolved_at",
    "value", "threshold", "transition",
)  # fmt: skip


def _template(value: str) -> str:
    template = string.Template(no_nul(value))
    if not template.is_valid():
        raise ValueError("a $ that names nothing is written as $$")
    if unknown := sorted(set(template.get_identifiers()) - set(FIELDS)):
        raise ValueError(f"${unknown[0]} stands for nothing; known are: {', '.join(f'${name}' for name in FIELDS)}")
    return value


def _label(value: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_.-]{0,62}", value):
        raise ValueError("a label's name is up to 63 small letters, digits and . _ -, and begins with a letter")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", value):
        raise ValueError("the name or address of a server is needed, for example mail.example.com")
    return value


def _header(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", value):
        raise ValueError("a header's name is up to 64 letters, digits and -")
    if value.lower() in _OURS or value.lower().startswith("x-ops-"):
        raise ValueError("this header is the platform's to set")
    return value


_OURS = frozenset({"content-type", "content-length", "transfer-encoding", "idempotency-key", "host", "connection"})

#: Text in which ``$name`` stands for something of the alert.
Template = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_template)]
Address = Annotated[str, StringConstraints(pattern=EMAIL)]
#: The name of a label: a word; ``alert_type`` and ``severity`` are every alert's.
Label = Annotated[str, AfterValidator(_label)]
#: The name of a header that HTTP or the signature does not need itself.
Header = Annotated[str, AfterValidator(_header)]
Matchers = Annotated[dict[Label, Annotated[Line, Field(min_length=1)]], Field(max_length=20)]


class _Channel(Spec):
    """``template``: how one alert reads, where the platform's own words do not do. ``taken``: which fields a document
    has taken from which secret, and since when that is what it is."""

    template: Template | None = None
    taken: dict[str, Line] = Field(default_factory=dict, max_length=10)


class WebhookConfig(_Channel):
    """``secret`` signs; without one a key that is made from SECRET_KEY and the channel's name does."""

    url: Url
    secret: Annotated[str, Field(min_length=16, max_length=1024), AfterValidator(no_nul)] | None = None
    headers: dict[Header, Line] = Field(default_factory=dict, max_length=20)


class SmtpConfig(_Channel):
    """``tls``: ``starttls``, ``tls`` (from the first byte), or ``none``, with which no password goes beyond this
    machine."""

    host: Annotated[str, AfterValidator(_host)]
    port: int = Field(587, ge=1, le=65535)
    tls: Literal["starttls", "tls", "none"] = "starttls"
    username: Line | None = None
    password: Value | None = None
    sender: Address
    to: Annotated[list[Address], Field(min_length=1, max_length=50)]

    @model_validator(mode="after")
    def _password_in_secret(self) -> SmtpConfig:
        if (self.username is None) != (self.password is None):
            raise ValueError("a username and a password go together")
        if self.tls == "none" and self.password is not None and not is_loopback(self.host):
            raise ValueError("a password goes to another machine by starttls or tls only")
        return self


class AppriseConfig(_Channel):
    """``url``: as Apprise has it, for example ``slack://...``; all of it is a secret."""

    url: Annotated[str, Field(min_length=5, max_length=4096), AfterValidator(no_nul)]

    @field_validator("url")
    @classmethod
    def _has_scheme(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if not separator or not scheme.isalnum() or not rest or any(c.isspace() for c in value):
            raise ValueError("an Apprise address is needed, for example discord://ID/TOKEN")
        return value


CHANNEL_CONFIGS: dict[ChannelKind, type[BaseModel]] = {
    ChannelKind.APPRISE: AppriseConfig,
    ChannelKind.WEBHOOK: WebhookConfig,
    ChannelKind.SMTP: SmtpConfig,
}


#: Fields that may be taken from a secret, by kind; True: that are secret whatever they hold.
SECRET_FIELDS: dict[ChannelKind, dict[str, bool]] = {
    ChannelKind.APPRISE: {"url": True},
    ChannelKind.WEBHOOK: {"url": False, "secret": True},
    ChannelKind.SMTP: {"password": True},
}


class ChannelSpec(Spec):
    """A channel as people write it."""

    name: Name
    kind: ChannelKind
    rate_limit: int = Field(10, ge=1, le=1000)


class RouteSpec(Spec):
    severity: Severity = Severity.LOW
    matchers: Matchers = Field(default_factory=dict)
    group_by: Annotated[list[Label], Field(max_length=10)] = Field(default_factory=list)
    wait_seconds: int = Field(30, ge=0, le=3600)
    repeat_seconds: int = Field(14400, ge=0, le=2_592_000)

    @field_validator("repeat_seconds")
    @classmethod
    def _not_too_often(cls, value: int) -> int:
        if 0 < value < 60:
            raise ValueError("at least a minute, or 0 for never")
        return value


class SilenceSpec(Spec):
    matchers: Annotated[Matchers, Field(min_length=1)]
    comment: Line | None = None


class MaintenanceSpec(Spec):
    matchers: Annotated[Matchers, Field(min_length=1)]
    title: Annotated[Line, Field(min_length=1)]


class SpanSpec(Spec):
    """When something holds, and for what; times without a zone are taken for UTC."""

    matchers: Matchers = Field(default_factory=dict)
    starts_at: datetime | None = None
    ends_at: datetime

    @field_validator("starts_at", "ends_at")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class RuleSpec(Spec):
    """What of a rule may be changed; what is not named stays."""

    enabled: bool | None = None
    threshold: float | None = Field(None, ge=0, le=1e15, allow_inf_nan=False)
    for_seconds: int | None = Field(None, ge=0, le=604_800)
    severity: Severity | None = None


def config_of(kind: ChannelKind, values: Mapping[str, Any]) -> BaseModel:
    """A channel's configuration. Raises InvalidInput: one line that names the field; never the value."""
    return check(CHANNEL_CONFIGS[kind], dict(values))


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
