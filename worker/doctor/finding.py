"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How bad it is."""

    OK = 0
    #: Could not be looked at, or is nobody's fault.
    NOTE = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``do`` says what to do, where there is something to do."""

    check: str
    severity: Severity
    says: str
    do: str | None = None


def ok(check: str, says: str) -> Finding:
    return Finding(check, Severity.OK, says)


def note(check: str, says: str, do: str | None = None) -> Finding:
    return Finding(check, Severity.NOTE, says, do)


def warning(check: str, says: str, do: str) -> Finding:
    return Finding(check, Severity.WARNING, says, do)


def critical(check: str, says: str, do: str) -> Finding:
    return Finding(check, Severity.CRITICAL, says, do)
