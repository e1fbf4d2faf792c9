"""Settings of an infrastructure, by its driver: refused when they are saved, not when somebody deploys."""

from __future__ import annotations

from pydantic import BaseModel, Field

from db.fields import Spec, Value, Variable


class CommandSettings(Spec):
    """Settings of the ``command`` driver: variables for every application deployed here."""

    environment: dict[Variable, Value] = Field(default_factory=dict, max_length=200)


#: The settings that each driver takes.
DRIVER_SETTINGS: dict[str, type[BaseModel]] = {"command": CommandSettings}
