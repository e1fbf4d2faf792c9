"""Labels as people write them: ``check=web*``."""

from __future__ import annotations

from typing import Any


def matchers(pairs: list[str] | None, option: str = "--match") -> dict[str, str]:
    """``NAME=VALUE`` each. Raises InvalidInput."""
    from db.errors import InvalidInput

    found: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise InvalidInput(f"{option}: {pair[:60]!r} is no NAME=VALUE, for example check=web*")
        found[name] = value
    return found


def say(matchers: dict[str, Any]) -> str:
    """Matchers in one line."""
    return ", ".join(f"{name}={value}" for name, value in sorted(matchers.items())) or "everything"
