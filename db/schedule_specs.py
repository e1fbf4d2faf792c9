"""A schedule as people write it: when, what, and how."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from db import recurrence
from db.fields import Name, Spec
from db.ledger import clean
from db.specs import DeploymentSpec
from db.states import CatchUp, Overlap

#: What a task may be given by a schedule, which is read each time it fires.
MOST_BYTES = 65_536
#: The platform's own: each does what its row, its tick or its right to act says, which a schedule would go around.
OWN_TASKS = frozenset({
    "tasks.alerts.evaluate", "tasks.audit.seal", "tasks.checks.dispatch", "tasks.checks.run_batch",
    "tasks.deployments.run", "tasks.maintenance.tidy", "tasks.metrics.count", "tasks.notifications.dispatch",
    "tasks.notifications.send", "tasks.schedules.fire",
})  # fmt: skip
_Short = Annotated[str, Field(min_length=1, max_length=255)]


def _one_line(value: str) -> str:
    if len(value.encode("utf-8", "replace")) > 255 or not value.isprintable():
        raise ValueError("1 to 255 bytes that can be printed are needed")
    return value


def _not_ours(value: str) -> str:
    if value in OWN_TASKS:
        raise ValueError(f"{value} is the platform's own and runs by itself; to deploy, a schedule says deploy")
    return value


def _queue(value: str) -> str:
    if value.startswith("amq."):
        raise ValueError("names that begin with amq. are the broker's own")
    return value


def _text(value: str) -> None:
    if clean(value) != value:
        raise ValueError("a NUL byte or broken Unicode is not allowed")


def _storable(value: Any) -> Any:
    """JSON that PostgreSQL holds, and other languages read as it is."""
    if isinstance(value, str):
        _text(value)
    elif isinstance(value, bool) or value is None:
        return value
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a number is too large; write it as a text, in quotes")
    elif isinstance(value, float) and value - value != 0:
        raise ValueError("a number must be finite")
    elif isinstance(value, list):
        for part in value:
            _storable(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            _text(key)
            _storable(part)
    return value


class ScheduledDeployment(DeploymentSpec):
    """Put a version of an application on an infrastructure."""

    application: Name
    infrastructure: Name


class ScheduledTask(Spec):
    """Enqueue a durable task of an application's own Celery app, which then serves the queue."""

    name: Annotated[_Short, AfterValidator(_one_line), AfterValidator(_not_ours)]
    queue: Annotated[_Short, AfterValidator(_one_line), AfterValidator(_queue)]
    args: Annotated[list[JsonValue], AfterValidator(_storable)] = Field(default_factory=list, max_length=100)
    kwargs: Annotated[dict[str, JsonValue], AfterValidator(_storable)] = Field(default_factory=dict, max_length=100)
    priority: int = Field(5, ge=0, le=9)
    idempotent: bool = False
    max_attempts: int = Field(3, ge=1, le=100)
    timeout_seconds: int = Field(3600, ge=1, le=7 * 86400)

    @model_validator(mode="after")
    def _small(self) -> ScheduledTask:
        if len(json.dumps([self.args, self.kwargs])) > MOST_BYTES:
            raise ValueError(f"args and kwargs are {MOST_BYTES} bytes of JSON at most")
        return self


class ScheduleSpec(Spec):
    """One of ``cron``, ``every`` and ``once`` says when; one of ``deploy`` and ``task`` says what.

    ``once`` without an offset, and ``cron``, are local times of ``timezone``.
    """

    name: Name
    cron: str | None = None
    every: str | None = None
    once: str | None = None
    timezone: str = "UTC"
    deploy: ScheduledDeployment | None = None
    task: ScheduledTask | None = None
    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.NONE
    pause_on_failure: int | None = Field(None, ge=1, le=100)

    @field_validator("timezone")
    @classmethod
    def _a_zone(cls, value: str) -> str:
        recurrence.zone(value)
        return value

    @field_validator("cron")
    @classmethod
    def _an_expression(cls, value: str | None) -> str | None:
        if value is None:
            return None
        expression = " ".join(value.split(" "))
        recurrence.cron(expression, ZoneInfo("UTC"))
        return expression

    @field_validator("every")
    @classmethod
    def _a_duration(cls, value: str | None) -> str | None:
        return None if value is None else recurrence.duration(recurrence.seconds(value))

    @field_validator("once")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None:
            _moment(value, ZoneInfo("UTC"))
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> ScheduleSpec:
        if sum(value is not None for value in (self.cron, self.every, self.once)) != 1:
            raise ValueError("one of cron, every and once says when")
        if (self.deploy is None) == (self.task is None):
            raise ValueError("one of deploy and task says what")
        if self.every is not None and self.timezone != "UTC":
            raise ValueError("an interval is the same in every time zone: timezone is for cron and once")
        if self.once is not None:
            self.once = _moment(self.once, recurrence.zone(self.timezone)).isoformat()
            self.timezone = "UTC"
        return self

    @property
    def once_at(self) -> datetime | None:
        return None if self.once is None else datetime.fromisoformat(self.once)


def _moment(text: str, zone: ZoneInfo) -> datetime:
    """An ISO time in UTC; without an offset it is a local time of the zone."""
    try:
        # A day alone would be its first minute, which nobody means.
        parsed = datetime.fromisoformat(text if len(text) >= len("2026-12-01T03:00") else "")
        moment = (parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("write a time as 2026-12-01T03:00, or with an offset as 2026-12-01T03:00+01:00") from None
    if not 2000 <= moment.year < recurrence.LAST_YEAR:
        raise ValueError(f"a year from 2000 to {recurrence.LAST_YEAR} is needed")
    return moment
