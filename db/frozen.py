"""What a deployment is to do, as it was when it was asked for: a later edit of the application changes nothing.

Secrets are in it by name only. How the place is reached (its driver and settings) is frozen as well; a rollback takes
the application from the deployment that it goes back to, and the place as it is now.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from db.drivers import DRIVER_SETTINGS
from db.errors import InvalidInput
from db.fields import AbsolutePath, Spec, Url, Word, check
from db.releases import Kind, kind_of
from db.specs import ApplicationConfiguration


class Frozen(Spec):
    """``deployments.frozen``."""

    command: list[Word] = Field(max_length=256)
    working_directory: AbsolutePath | None
    health_check_url: Url | None
    configuration: ApplicationConfiguration
    driver: str
    settings: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """As it is stored: with every default as it is today."""
        return self.model_dump(mode="json")


def freeze(
    *, command: list[str], working_directory: str | None, health_check_url: str | None, configuration: dict[str, Any],
    driver: str, settings: dict[str, Any],
) -> Frozen:  # fmt: skip
    """Resolve everything. Raises InvalidInput where application and place do not fit together."""
    if driver not in DRIVER_SETTINGS:
        raise InvalidInput(f"unknown driver; known are: {', '.join(sorted(DRIVER_SETTINGS))}")
    resolved = check(DRIVER_SETTINGS[driver], settings, "settings")
    made = check(Frozen, {
        "command": command, "working_directory": working_directory, "health_check_url": health_check_url,
        "configuration": configuration, "driver": driver, "settings": resolved.model_dump(mode="json"),
    })  # fmt: skip
    artifact = made.configuration.artifact
    if driver == "command" and not made.command:
        raise InvalidInput("the application has no command, and the driver `command` runs nothing else")
    if driver == "docker" and (artifact is None or kind_of(artifact) is not Kind.IMAGE):
        raise InvalidInput(
            "the driver `docker` runs images: the application needs an artifact image:NAME",
            hint="ops app edit APP --artifact image:registry.example/web",
        )
    return made


def digest(document: dict[str, Any]) -> str:
    """``sha256:`` of the canonical form: sorted keys, no spaces, UTF-8."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode('utf-8')).hexdigest()}"


def thaw(document: dict[str, Any]) -> Frozen:
    """What was frozen. Raises InvalidInput where this release does not know it any more."""
    return check(Frozen, document, "frozen")
