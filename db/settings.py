"""Settings, read once from the environment and from two files.

Sources, strongest first: the environment, ``.env`` in the current folder, ``env`` in the data folder of the
embedded stack (``.ops/``, found upwards from the current folder as git does, or ``OPS_DATA_DIR``). A secret may be
given as a file instead: ``ENCRYPTION_KEY_FILE=/run/secrets/key``.

Nothing is required here. A part that needs a value asks for it by a ``require_*`` method, so that the ledger alone
runs without an encryption key.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import make_conninfo
from pydantic import AliasChoices, Field, SecretStr, StringConstraints, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import DotEnvSettingsSource, EnvSettingsSource
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from db.errors import SettingsError

DATA_DIR_NAME = ".ops"

#: Variables whose value may be given as a file by the same name with ``_FILE``.
SECRETS = (
    "DATABASE_URL",
    "OPS_DATABASE_OWNER_URL",
    "OPS_DATABASE_ADMIN_URL",
    "OPS_BROKER_URL",
    "ENCRYPTION_KEY",
    "ENCRYPTION_PASSWORD",
    "ENCRYPTION_SALT",
    "OPS_ENCRYPTION_KEYS",
    "SECRET_KEY",
    "OPS_AUDIT_SEAL_KEY",
    "FLOWER_BASIC_AUTH",
    "OPS_METRICS_TOKEN",
)

#: Where encryption keys come from, each for itself enough.
KEY_VARIABLES = ("ENCRYPTION_KEY", "OPS_ENCRYPTION_KEYS", "ENCRYPTION_PASSWORD")

#: What a good value looks like, shown when one is missing or malformed.
EXAMPLES = {
    "DATABASE_URL": "postgresql://ops:password@localhost:5432/ai_manage_ops",
    "OPS_DATABASE_OWNER_URL": "postgresql://ops_owner:password@localhost:5432/ai_manage_ops",
    "OPS_DATABASE_ADMIN_URL": "postgresql://postgres:password@localhost:5432/ai_manage_ops",
    "OPS_DATABASE_SCHEMA": "ops",
    "OPS_BROKER_URL": "redis://:password@localhost:6379/0",
    "ENCRYPTION_KEY": "the output of: ops encryption-key new",
    "ENCRYPTION_SALT": "at least 16 random characters",
    "OPS_ENCRYPTION_KEYS": "2026:<key>,2025:pbkdf2:600000:<salt>:<password>, salt and password in base64",
    "OPS_ENCRYPTION_PRIMARY": "2027",
    "OPS_PBKDF2_ITERATIONS": "600000",
    "SECRET_KEY": "at least 32 random characters",
    "OPS_PROBE_ALLOW": "10.0.0.0/8,192.168.7.0/24,fd00::/8",
    "OPS_AUDIT_SEAL_KEY": "as printed by: ops audit new-key",
    "OPS_AUDIT_VERIFY_KEY": "as printed by: ops audit new-key",
    "OPS_METRICS_TOKEN": "at least 16 random characters",
}

#: The fewest and the most iterations of a key that is derived from a password.
PBKDF2_ITERATIONS = (100_000, 100_000_000)

Schema = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]


def _env(*names: str) -> Any:
    return AliasChoices(*names)


class Settings(BaseSettings):
    """All settings; see ``.env.example`` for what each one means."""

    model_config = SettingsConfigDict(extra="ignore", hide_input_in_errors=True, env_ignore_empty=True)

    database_url: SecretStr | None = Field(None, validation_alias=_env("DATABASE_URL"))
    database_owner_url: SecretStr | None = Field(None, validation_alias=_env("OPS_DATABASE_OWNER_URL"))
    database_admin_url: SecretStr | None = Field(None, validation_alias=_env("OPS_DATABASE_ADMIN_URL"))
    database_debug: bool = Field(False, validation_alias=_env("DATABASE_DEBUG"))
    database_schema: Schema = Field("public", validation_alias=_env("OPS_DATABASE_SCHEMA"))
    database_pool_size: int = Field(10, ge=1, le=200, validation_alias=_env("OPS_DATABASE_POOL_SIZE"))
    database_max_overflow: int = Field(20, ge=0, le=500, validation_alias=_env("OPS_DATABASE_MAX_OVERFLOW"))
    database_pooler: Literal["none", "transaction"] = Field("none", validation_alias=_env("OPS_DATABASE_POOLER"))
    statement_seconds: int = Field(60, ge=0, le=86400, validation_alias=_env("OPS_DATABASE_STATEMENT_SECONDS"))
    database_pool_timeout_seconds: float = Field(30, gt=0, le=600, validation_alias=_env("OPS_DATABASE_POOL_TIMEOUT"))
    broker_url: SecretStr | None = Field(
        None, validation_alias=_env("OPS_BROKER_URL", "CELERY_BROKER_URL", "REDIS_URL")
    )

    private_hosts: str = Field("", validation_alias=_env("OPS_PRIVATE_HOSTS"))

    encryption_key: SecretStr | None = Field(None, validation_alias=_env("ENCRYPTION_KEY"))
    encryption_password: SecretStr | None = Field(None, validation_alias=_env("ENCRYPTION_PASSWORD"))
    encryption_salt: SecretStr | None = Field(None, validation_alias=_env("ENCRYPTION_SALT"))
    encryption_keys: SecretStr | None = Field(None, validation_alias=_env("OPS_ENCRYPTION_KEYS"))
    encryption_primary: str | None = Field(None, validation_alias=_env("OPS_ENCRYPTION_PRIMARY"))
    pbkdf2_iterations: int = Field(
        600_000, ge=PBKDF2_ITERATIONS[0], le=PBKDF2_ITERATIONS[1], validation_alias=_env("OPS_PBKDF2_ITERATIONS")
    )
    secret_key: SecretStr | None = Field(None, validation_alias=_env("SECRET_KEY"))
    debug: bool = Field(False, validation_alias=_env("DEBUG"))

    audit_seal_key: SecretStr | None = Field(None, validation_alias=_env("OPS_AUDIT_SEAL_KEY"))
    audit_verify_key: str | None = Field(None, validation_alias=_env("OPS_AUDIT_VERIFY_KEY"))
    audit_seal_file: Path | None = Field(None, validation_alias=_env("OPS_AUDIT_SEAL_FILE"))

    metrics_token: SecretStr | None = Field(None, validation_alias=_env("OPS_METRICS_TOKEN"))
    status_title: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(
        "Status", validation_alias=_env("OPS_STATUS_TITLE")
    )
    log_format: Literal["text", "json"] = Field("text", validation_alias=_env("OPS_LOG_FORMAT"))
    flower_basic_auth: SecretStr | None = Field(None, validation_alias=_env("FLOWER_BASIC_AUTH"))
    user: str | None = Field(None, validation_alias=_env("OPS_USER"))
    backup_stamp: str | None = Field(None, validation_alias=_env("OPS_BACKUP_STAMP"))
    alive_file: Path | None = Field(None, validation_alias=_env("OPS_ALIVE_FILE"))
    shutdown_seconds: int = Field(30, ge=1, le=3600, validation_alias=_env("OPS_SHUTDOWN_SECONDS"))
    remote_control: Literal["read", "full"] = Field("read", validation_alias=_env("OPS_REMOTE_CONTROL"))
    deployment_log_bytes: int = Field(
        10_000_000, ge=10_000, le=1_000_000_000, validation_alias=_env("OPS_DEPLOYMENT_LOG_BYTES")
    )
    job_retention_days: int = Field(30, ge=1, le=3650, validation_alias=_env("OPS_JOB_RETENTION_DAYS"))
    log_retention_days: int = Field(90, ge=1, le=3650, validation_alias=_env("OPS_LOG_RETENTION_DAYS"))
    #: Internal networks that probes may ask, with commas; everything else that is not public is refused.
    probe_allow: str = Field("", validation_alias=_env("OPS_PROBE_ALLOW"))
    check_result_days: int = Field(7, ge=2, le=400, validation_alias=_env("OPS_CHECK_RESULT_DAYS"))
    check_hour_days: int = Field(90, ge=8, le=3650, validation_alias=_env("OPS_CHECK_HOUR_DAYS"))
    check_history_days: int = Field(800, ge=90, le=36500, validation_alias=_env("OPS_CHECK_HISTORY_DAYS"))
    alert_retention_days: int = Field(365, ge=1, le=3650, validation_alias=_env("OPS_ALERT_RETENTION_DAYS"))
    audit_retention_days: int = Field(730, ge=90, le=36500, validation_alias=_env("OPS_AUDIT_RETENTION_DAYS"))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - replaced by one that reads *_FILE too
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            init_settings,
            _Environment(settings_cls),
            *(_File(settings_cls, env_file=path) for path in env_files()),
        )

    def require_database_url(self, *, owner: bool = False) -> str:
        """The database's URL, with the driver this package uses.

        ``owner`` asks for the role that owns the tables (``OPS_DATABASE_OWNER_URL``), and falls back to the
        runtime role where only that is given. Raises SettingsError when neither is set.
        """
        if owner and self.database_owner_url:
            return normalise_database_url(self.database_owner_url.get_secret_value(), "OPS_DATABASE_OWNER_URL")
        if self.database_url is None:
            raise _missing("DATABASE_URL", "or run `ops up` to start an embedded one here")
        return normalise_database_url(self.database_url.get_secret_value())

    def require_admin_url(self) -> str:
        """As the role that may make roles (``OPS_DATABASE_ADMIN_URL``), else as the owner. Raises SettingsError."""
        if self.database_admin_url:
            return normalise_database_url(self.database_admin_url.get_secret_value(), "OPS_DATABASE_ADMIN_URL")
        return self.require_database_url(owner=True)

    def is_private(self, host: str | None) -> bool:
        """Whether a host is reached over a network that nobody else is on, by what was declared."""
        return (host or "").lower() in {name.strip().lower() for name in self.private_hosts.split(",") if name.strip()}

    @field_validator("probe_allow")
    @classmethod
    def _networks(cls, value: str) -> str:
        _parse_networks(value)
        return value

    @property
    def probe_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The internal networks that probes may ask."""
        return _parse_networks(self.probe_allow)

    def require_broker_url(self) -> str:
        """The broker's URL. Raises SettingsError when it is not set."""
        if self.broker_url is None:
            raise _missing("OPS_BROKER_URL", "or run `ops up` to start an embedded one here")
        return self.broker_url.get_secret_value()

    def scrape_token(self) -> str | None:
        """What whoever reads the metrics sends; None: there is none. Raises SettingsError for one that is short."""
        token = self.metrics_token.get_secret_value() if self.metrics_token is not None else None
        if token is not None and len(token) < 16:
            raise SettingsError(f"OPS_METRICS_TOKEN is too short; needed: {EXAMPLES['OPS_METRICS_TOKEN']}")
        return token

    def require_secret_key(self) -> bytes:
        """The key that signs page cursors and webhooks. Raises SettingsError when missing or short."""
        if self.secret_key is None:
            raise _missing("SECRET_KEY", "or run `make env` to write a .env with fresh secrets")
        value = self.secret_key.get_secret_value()
        if len(value) < 32:
            raise SettingsError(f"SECRET_KEY is too short; needed: {EXAMPLES['SECRET_KEY']}")
        return value.encode()


class _ReadsFiles:
    """A source of values in which ``NAME_FILE`` stands for the content of a file."""

    def _with_files(self, values: dict[str, str | None]) -> dict[str, str | None]:
        for name in SECRETS:
            path = values.get(f"{name}_FILE")
            if not path or values.get(name):
                continue
            try:
                values[name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise SettingsError(f"{name}_FILE names {path}, which cannot be read: {reason}") from None
            if not values[name]:  # a secret that was not mounted must not count as one that nobody asked for
                raise SettingsError(f"{name}_FILE names {path}, which is empty")
        return values


class _Environment(_ReadsFiles, EnvSettingsSource):
    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, case_sensitive=True)

    def _load_env_vars(self) -> dict[str, str | None]:
        values: dict[str, str | None] = {name: value for name, value in os.environ.items() if value != ""}
        return self._with_files(values)


class _File(_ReadsFiles, DotEnvSettingsSource):
    def __init__(self, settings_cls: type[BaseSettings], env_file: Path) -> None:
        # Some editors begin a file with a mark that would become a part of the first name.
        self._path = env_file
        super().__init__(settings_cls, env_file=env_file, env_file_encoding="utf-8-sig", case_sensitive=True)

    def _read_env_files(self) -> dict[str, str | None]:
        # As it is written: a password with ${...} in it would become another, or none.
        found = dotenv_values(self._path, encoding="utf-8-sig", interpolate=False)
        return self._with_files({name: value for name, value in found.items() if value})


def find_data_dir(start: Path | None = None) -> Path | None:
    """The folder of the embedded stack: ``OPS_DATA_DIR``, else the nearest ``.ops`` upwards, else None."""
    if named := os.environ.get("OPS_DATA_DIR"):
        return Path(named).expanduser().absolute()
    here = (start or Path.cwd()).absolute()
    for folder in (here, *here.parents):
        if (folder / DATA_DIR_NAME).is_dir():
            return folder / DATA_DIR_NAME
    return None


def env_files() -> list[Path]:
    """The files that settings are read from, strongest first; only those that exist."""
    data_dir = find_data_dir()
    candidates = [Path.cwd() / ".env"] + ([data_dir / "env"] if data_dir else [])
    return [path for path in candidates if path.is_file()]


def origin(*names: str) -> str | None:
    """Where a value comes from: ``environment``, a file's path, or None when none of these variables is set."""
    for name in names:
        for variable in (name, f"{name}_FILE"):
            if os.environ.get(variable):
                return f"environment ({variable})"
    for path in env_files():
        given = _File(Settings, env_file=path).env_vars
        if any(given.get(name) for name in names):
            return str(path)
    return None


def normalise_database_url(url: str, name: str = "DATABASE_URL") -> str:
    """Map the spellings of a PostgreSQL URL to the one driver used here (psycopg 3, sync and async).

    Raises SettingsError for anything that is not PostgreSQL, or that its client library would not take.
    """
    match = re.match(r"^(postgres|postgresql)(\+(asyncpg|psycopg|psycopg2|psycopg_async))?://", url)
    if match is None:
        raise SettingsError(f"{name} must name a PostgreSQL database, for example {EXAMPLES[name]}")
    rest = url[match.end() :]
    if match.group(3) == "asyncpg":
        rest = re.sub(r"([?&])ssl=(\w*)", lambda m: f"{m[1]}sslmode={_SSL.get(m[2].lower(), m[2])}", rest)
    if not _is_conninfo(f"postgresql://{rest}"):
        raise SettingsError(
            f"{name} is malformed (in a password, characters like @ : / ? are written as %40 %3A %2F %3F); "
            f"for example {EXAMPLES[name]}"
        )
    return f"postgresql+psycopg://{rest}"


def libpq_conninfo(url: str) -> str:
    """A database URL as libpq takes it, with the parameters that an engine made from it uses."""
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    _, parameters = parsed.get_dialect()().create_connect_args(parsed)
    parameters.pop("context", None)
    return make_conninfo(**parameters)


def _is_conninfo(url: str) -> bool:
    try:
        host = make_url(url).host
        libpq_conninfo(url)
    except (ArgumentError, ValueError, psycopg.ProgrammingError):
        return False  # and not why: they quote what may be a part of the password
    # In a host it is the rest of a password, which a failing look-up of the name would show.
    return "@" not in (host or "")


#: What asyncpg's `ssl` may be beside libpq's own words.
_SSL = {"true": "require", "1": "require", "false": "disable", "0": "disable"}


def _parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def _missing(name: str, otherwise: str) -> SettingsError:
    return SettingsError(f"{name} is not set; set it (for example {EXAMPLES[name]}) {otherwise}")


def _explain(error: ValidationError) -> SettingsError:
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "a setting"
    return SettingsError(f"{name} is malformed: {first['msg'].lower()}; for example {_good_value(name)}")


def _good_value(name: str) -> str:
    defaults = {str(_choices(field)[0]): field.default for field in Settings.model_fields.values()}
    return EXAMPLES.get(name) or str(defaults.get(name, "")).lower()


def _choices(field: FieldInfo) -> list[Any]:
    alias = field.validation_alias
    return list(alias.choices) if isinstance(alias, AliasChoices) else [alias]


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once. Raises SettingsError with one line that names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        raise _explain(error) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"a settings file is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise SettingsError(f"{error.filename or 'a settings file'} cannot be read: {error.strerror}") from None
