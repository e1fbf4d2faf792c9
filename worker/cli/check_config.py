"""The settings of a check as people type them: a target, and `--set` for the rest."""

from __future__ import annotations

import json
from typing import Any

#: What a kind's target names, and an example for who left it out.
_TARGETS = {
    "http": ("url", "https://example.org/healthz"),
    "tcp": ("host:port", "db.example.org:5432"),
    "tls": ("host:port", "example.org:443"),
    "dns": ("name", "example.org"),
    "postgres": ("host:port", "db.example.org:5432"),
    "redis": ("host:port", "cache.example.org:6379"),
    "celery": ("queue", "deployments"),
    "system": ("metric", "disk"),
    "heartbeat": ("cron", "'30 2 * * *', or --set period_seconds=3600"),
}


def config_of(kind: str, target: str | None, given: list[str] | None, before: dict[str, Any]) -> dict[str, Any]:
    """The settings: those before, a target, ``FIELD=TEXT`` and ``FIELD:=JSON``. Raises InvalidInput."""
    from db.errors import InvalidInput

    if kind not in _TARGETS:
        raise InvalidInput(f"{kind[:40]!r} is no kind of check; known are: {', '.join(_TARGETS)}")
    config = dict(before)
    field, example = _TARGETS[kind]
    if target is not None:
        config |= _address(target, kind, example) if field == "host:port" else {field: target}
    for each in given or ():
        name, colon, raw = each.partition(":=")
        plain, equals, text = each.partition("=")
        if colon and len(name) < len(plain):
            try:
                config[name] = json.loads(raw)
            except ValueError:
                raise InvalidInput(f"--set {name}:= is followed by what is no JSON") from None
        elif equals:
            config[plain] = text
        else:
            raise InvalidInput(f"--set {each[:60]!r}: write FIELD=TEXT or FIELD:=JSON")
    if not config:
        raise InvalidInput(f"what is to be looked at is missing; for example: ops check add NAME {kind} {example}")
    return config


def _address(target: str, kind: str, example: str) -> dict[str, Any]:
    """``host``, ``host:port``, ``[address]:port``."""
    from db.errors import InvalidInput

    host, port = target, ""
    if target.startswith("["):
        host, _, rest = target[1:].partition("]")
        port = rest.removeprefix(":")
    elif target.count(":") == 1:
        host, _, port = target.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        raise InvalidInput(f"{target[:100]!r} is no address; for example {example}")
    if not port and kind == "tcp":
        raise InvalidInput(f"a port is missing; for example {example}")
    return {"host": host} | ({"port": int(port[:6])} if port else {})
