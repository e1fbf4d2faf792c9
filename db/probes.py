"""What each kind of check looks at, as people write it; checked when it is saved, and again when it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from db.fields import AbsolutePath, Line, Name, SecretName, Spec, Url, Value, Word, check
from db.states import CheckKind, CheckStatus, Severity

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = rf"^{_LABEL}(?:\.{_LABEL})*\.?$"
_TOKEN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"  # noqa: S105 - what HTTP calls a token
_RANGES = r"^[1-5]\d\d(-[1-5]\d\d)?(,[1-5]\d\d(-[1-5]\d\d)?){0,20}$"


def _host(value: str) -> str:
    if re.fullmatch(r"[0-9A-Fa-f:.]+", value) and (":" in value or re.fullmatch(r"[\d.]+", value)):
        from ipaddress import ip_address

        try:
            return str(ip_address(value))
        except ValueError:
            raise ValueError("not an address") from None
    if not re.fullmatch(_HOST, value):
        raise ValueError("a host's name or address is needed")
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


#: A host's name or address; an IPv6 address stands without brackets.
Host = Annotated[str, Field(max_length=253), AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=60)]
Days = Annotated[int, Field(ge=0, le=3650)]
#: A regular expression; it is searched with a limit of time, in a text of bounded size.
Pattern = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_pattern)]
#: A name as HTTP has it; what frames a message is not for people to set.
Header = Annotated[str, StringConstraints(pattern=_TOKEN)]
_FRAMING = {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"}


class _Kind(Spec):
    """Settings of one kind of check."""

    def secrets(self) -> dict[str, str]:
        """The secrets that a run needs: what they are for, and their names."""
        return {}


class BasicAuth(Spec):
    """A user's name, and the secret that is the password."""

    user: Word
    secret: SecretName


class HttpCheck(_Kind):
    """Ask for a URL.

    ``status``: what is up, as ``200-299,401``; of the answer after redirects. ``degraded_seconds``, ``down_seconds``:
    an answer that takes longer is that. ``tls_days``: degraded when a certificate ends sooner (None: not looked at).
    ``secret_headers`` and ``basic``: only for the host of ``url``, never after a redirect to another.
    """

    url: Url
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    headers: dict[Header, Line] = Field(default_factory=dict, max_length=50)
    secret_headers: dict[Header, SecretName] = Field(default_factory=dict, max_length=10)
    basic: BasicAuth | None = None
    body: Value | None = None
    status: Annotated[str, StringConstraints(pattern=_RANGES)] = "200-299"
    body_matches: Pattern | None = None
    body_lacks: Pattern | None = None
    json_path: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    json_equals: str | int | float | bool | None = None
    degraded_seconds: Seconds | None = None
    down_seconds: Seconds | None = None
    redirects: int = Field(5, ge=0, le=10)
    tls_verify: bool = True
    tls_days: Days | None = 14

    @field_validator("headers", "secret_headers")
    @classmethod
    def _not_framing(cls, value: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in value if name.lower() in _FRAMING]:
            raise ValueError(f"{wrong[0]} is set by the client itself")
        return value

    @field_validator("status")
    @classmethod
    def _in_order(cls, value: str) -> str:
        for part in value.split(","):
            low, _, high = part.partition("-")
            if high and int(high) < int(low):
                raise ValueError(f"{part} ends before it begins")
        return value

    @field_validator("json_path")
    @classmethod
    def _json_path(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if value.count("..") > 1:
            raise ValueError("at most one '..' is allowed: two of them look through everything for everything")
        try:
            from jsonpath_rfc9535 import JSONPathError
            from jsonpath_rfc9535 import compile as compile_path
        except ImportError:
            return value  # whoever runs it has it
        try:
            compile_path(value)
        except (JSONPathError, RecursionError) as error:
            raise ValueError(f"not a JSON path: {str(error).splitlines()[0]}") from None
        return value

    def accepts(self, status: int) -> bool:
        """Whether an answer with this status is up."""
        parts = (part.partition("-") for part in self.status.split(","))
        return any(int(low) <= status <= int(high or low) for low, _, high in parts)

    def secrets(self) -> dict[str, str]:
        wanted = {f"header {name}": secret for name, secret in self.secret_headers.items()}
        return wanted | ({"basic": self.basic.secret} if self.basic else {})


class TcpCheck(_Kind):
    """Connect; then, if wanted, send a text and expect one that a regular expression finds."""

    host: Host
    port: Port
    send: Value | None = None
    expect: Pattern | None = None
    degraded_seconds: Seconds | None = None


class TlsCheck(_Kind):
    """Look at a certificate: trusted, for this host, and valid for longer than ``degraded_days``; down below
    ``down_days``."""

    host: Host
    port: Port = 443
    server_name: Host | None = None
    verify: bool = True
    degraded_days: Days = 14
    down_days: Days = 0


class DnsCheck(_Kind):
    """Ask for records. ``expect``: values that must all be there; ``resolver``: whom to ask (None: the system's)."""

    name: Host
    record: Literal["A", "AAAA", "CNAME", "MX", "NS", "TXT", "SOA", "SRV", "CAA", "PTR"] = "A"
    expect: list[Line] = Field(default_factory=list, max_length=50)
    resolver: Host | None = None
    port: Port = 53
    degraded_seconds: Seconds | None = None


class PostgresCheck(_Kind):
    """Connect; then, if wanted, run a query in a read-only transaction and compare its first value as text."""

    host: Host
    port: Port = 5432
    database: Line = "postgres"
    user: Line
    password: SecretName | None = None
    sslmode: Literal["disable", "prefer", "require", "verify-full"] = "prefer"
    query: Annotated[str, Field(max_length=5000)] | None = None
    expect: Line | None = None
    degraded_seconds: Seconds | None = None

    def secrets(self) -> dict[str, str]:
        return {"password": self.password} if self.password else {}


class RedisCheck(_Kind):
    """PING a Redis or Valkey server; ``max_memory_percent``: degraded when it uses more of its own limit."""

    host: Host
    port: Port = 6379
    tls: bool = False
    user: Line | None = None
    password: SecretName | None = None
    max_memory_percent: Annotated[float, Field(gt=0, le=100)] | None = None
    degraded_seconds: Seconds | None = None

    def secrets(self) -> dict[str, str]:
        return {"password": self.password} if self.password else {}


class CeleryCheck(_Kind):
    """A queue of this platform: enough workers alive, few enough jobs due, none due for too long. Down without workers;
    degraded where ``max_due`` or ``max_age_seconds`` is exceeded."""

    queue: Name
    min_workers: int = Field(1, ge=0, le=10_000)
    max_due: int | None = Field(None, ge=0, le=10_000_000)
    max_age_seconds: float | None = Field(None, gt=0, le=86_400)


class SystemCheck(_Kind):
    """A figure of the host on which the worker runs: percent of cpu, memory or a file system, or the load per cpu."""

    metric: Literal["cpu", "memory", "disk", "load"]
    path: AbsolutePath = "/"
    degraded_above: Annotated[float, Field(gt=0, le=1000)] | None = None
    down_above: Annotated[float, Field(gt=0, le=1000)] = 90

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.degraded_above is not None and self.degraded_above >= self.down_above:
            raise ValueError("degraded_above is below down_above")
        return self


class HeartbeatCheck(_Kind):
    """Something that must report by itself: every ``period_seconds``, or when a ``cron`` line (in ``timezone``) says;
    down when it has not for ``grace_seconds`` longer, or has said that it failed."""

    period_seconds: Annotated[int, Field(ge=10, le=366 * 86_400)] | None = None
    cron: Annotated[str, Field(max_length=200)] | None = None
    timezone: Annotated[str, Field(max_length=64)] = "UTC"
    grace_seconds: int = Field(60, ge=1, le=30 * 86_400)

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("an unknown time zone; for example Europe/Berlin") from None
        return value

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            next(CronSim(value, datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC"))))
        except (CronSimError, StopIteration):
            raise ValueError("not a cron line, or one that never comes; for example 30 2 * * *") from None
        return value

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.period_seconds is None) == (self.cron is None):
            raise ValueError("either period_seconds or cron is needed")
        return self


#: What each kind takes.
KINDS: dict[CheckKind, type[_Kind]] = {
    CheckKind.HTTP: HttpCheck,
    CheckKind.TCP: TcpCheck,
    CheckKind.TLS: TlsCheck,
    CheckKind.DNS: DnsCheck,
    CheckKind.POSTGRES: PostgresCheck,
    CheckKind.REDIS: RedisCheck,
    CheckKind.CELERY: CeleryCheck,
    CheckKind.SYSTEM: SystemCheck,
    CheckKind.HEARTBEAT: HeartbeatCheck,
}


class CheckSpec(Spec):
    """A check as people write it, beside its kind's settings.

    ``failure_threshold``, ``success_threshold``: how many runs of one mind change its state. ``retry_seconds``: the
    pause after a run that saw something worse than the state, until that is confirmed (None: a third of the interval).
    ``public``: shown on the status page, by name and state alone.
    """

    name: Name
    kind: CheckKind
    config: dict[str, Any]
    interval_seconds: int = Field(60, ge=5, le=86_400)
    timeout_seconds: float = Field(5, ge=0.1, le=60)
    failure_threshold: int = Field(3, ge=1, le=100)
    success_threshold: int = Field(2, ge=1, le=100)
    retry_seconds: int | None = Field(None, ge=1, le=86_400)
    severity: Severity = Severity.HIGH
    labels: dict[Name, Line] = Field(default_factory=dict, max_length=50)
    public: bool = False

    @model_validator(mode="after")
    def _config_fits(self) -> Self:
        # As it is stored: complete, so that a later release's defaults change no check that exists.
        self.config = check(KINDS[self.kind], self.config, "config").model_dump(mode="json")
        return self


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """All that one run needs. ``secrets`` are open, by what they are for; ``known``: what only the database knows, for
    the kinds that ask for it."""

    check_id: int
    kind: CheckKind
    config: Any
    timeout_seconds: float
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    known: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run has seen. ``latency_seconds``: None where nothing answered; ``facts``: figures for people and
    alerts; ``due_at``: when to run next, where the probe knows better than the interval; ``is_slow``: it says so
    because of the time that it took."""

    status: CheckStatus
    latency_seconds: float | None = None
    message: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    due_at: datetime | None = None
    is_slow: bool = False
