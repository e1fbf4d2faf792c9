"""What a driver says: events on stdout, one JSON object a line."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

#: How it went, and the exit code that says the same where a worker has died.
EXIT_CODES = {"ok": 0, "failed": 1, "unknown": 3}


def emit(event: dict[str, Any]) -> None:
    """Pass one event on; a worker that is gone is no reason to go on."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(1)


def say(text: str) -> None:
    """A line of the platform's own in the deployment's log."""
    emit({"event": "log", "stream": "platform", "text": text + "\n"})


def end(outcome: str, message: str = "") -> int:
    """The last event; the exit code."""
    emit({"event": "end", "outcome": outcome, "message": message})
    return EXIT_CODES[outcome]
