"""The fields that specs are made of: names, addresses, words of an argv; and how a refusal reads."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from db.errors import InvalidInput

M = TypeVar("M", bound=BaseModel)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("control characters are not allowed")
    return value


def no_nul(value: str) -> str:
    if "\0" in value or re.search(r"[\ud800-\udfff]", value):
        raise ValueError("a NUL byte or broken Unicode is not allowed")
    return value


def http_url(value: str) -> str:
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
EMAIL = r"^[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,255}$"
ADDRESS = r"^[A-Za-z0-9:]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9:])?$"
SYSTEM_USER = r"^[a-z_][a-z0-9_-]{0,31}$"
#: What fits, for people: a pattern tells them nothing.
_FITS = {
    _NAME: "a name is up to 63 letters, digits and . _ -, and begins with a letter or digit",
    _VARIABLE: "a variable's name is up to 128 letters, digits and _, and does not begin with a digit",
    SERVICE_AND_KEY: "a secret is named SERVICE/NAME, for example aws/access_key",
    _VERSION: "a version is up to 200 letters, digits and . _ + : @ / -, and begins with a letter or digit",
    ADDRESS: "a host's address is its name or IP address, for example web1.example.com",
    SYSTEM_USER: "a user of a host is up to 32 small letters, digits and _ -, and begins with a letter or _",
    EMAIL: "an e-mail address is needed, for example alice@example.com",
}

#: A name people give: starts with a letter or digit, no spaces, 63 characters at most.
Name = Annotated[str, StringConstraints(pattern=_NAME)]
#: The key of a row.
Id = Annotated[int, Field(strict=True, gt=0, lt=2**63)]
#: One word of an argv.
Word = Annotated[str, Field(max_length=8192), AfterValidator(no_nul)]
Argv = Annotated[list[Word], Field(min_length=1, max_length=256)]
#: The name of an environment variable; names starting with OPS_ are the platform's.
Variable = Annotated[str, StringConstraints(pattern=_VARIABLE), AfterValidator(_not_ours)]
Value = Annotated[str, Field(max_length=32_768), AfterValidator(no_nul)]
#: A secret's name: service/key.
SecretName = Annotated[str, StringConstraints(pattern=SERVICE_AND_KEY)]
Url = Annotated[str, Field(max_length=2048), AfterValidator(printable), AfterValidator(http_url)]
AbsolutePath = Annotated[str, Field(max_length=4096), AfterValidator(no_nul), AfterValidator(_absolute)]
Line = Annotated[str, Field(max_length=500), AfterValidator(printable)]
#: What is deployed: reaches a command as OPS_VERSION, often as a part of a path, so no part of it may be ``..``.
Version = Annotated[str, StringConstraints(pattern=_VERSION)]


class Spec(BaseModel):
    """What people write: unknown fields are refused, and no refusal shows a value."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, str_strip_whitespace=False)


def text(value: object, what: str) -> str:
    """The value. Raises InvalidInput unless it is text, of whatever kind."""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} is text")
    return value


def storable(value: object, what: str) -> str:
    """The value. Raises InvalidInput unless it is text that the database can hold."""
    try:
        return no_nul(text(value, what))
    except ValueError:
        raise InvalidInput(f"{what} is text without NUL bytes or broken Unicode") from None


def problems(model: type[BaseModel], values: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """Where values are not as their model wants them, and what fits there; never the values. ``name`` is no field that
    is said to be known: in a document it is a key."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return [
            (tuple(part for part in each["loc"] if part != "[key]"), _said(each, model, "name"))
            for each in error.errors(include_url=False, include_input=False)
        ]
    return []


def check(model: type[M], values: dict[str, Any], where: str = "") -> M:
    """The values as their model. Raises InvalidInput: one line that names the field; never the value."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        parts = ((where,) if where else ()) + tuple(first["loc"])
        # A part may be a key that somebody made up.
        path = ".".join(_CONTROL.sub("", str(part))[:80] for part in parts if part != "[key]")
        said = _said(first, model)
        raise InvalidInput(f"{path}: {said}" if path else said) from None


def _said(error: ErrorDetails, model: type[BaseModel], unsaid: str | None = None) -> str:
    if error["type"] == "extra_forbidden":
        path = error["loc"][:-1]
        known = [name for name in _fields_at(model, path) if path or name != unsaid]
        return f"unknown; known are: {', '.join(known)}" if known else "unknown"
    if error["type"] in ("model_type", "dict_type"):
        return "names and their values are needed"
    return _FITS.get(error.get("ctx", {}).get("pattern", ""), error["msg"].removeprefix("Value error, "))


def _fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The fields that a spec, or the one that a field of it holds, has; none where that cannot be told."""
    for part in path:
        field = model.model_fields.get(str(part))
        held = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        specs = [each for each in held if isinstance(each, type) and issubclass(each, BaseModel)]
        if len(specs) != 1:
            return []
        model = specs[0]
    return list(model.model_fields)
