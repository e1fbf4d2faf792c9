"""A message as people and programs read it."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: What a stranger's text must not bring along: it is read in mail programs, chats and terminals.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_LINE, MAX_TEXT = 1000, 100_000

_WORDS = {"raised": "firing", "repeated": "still firing", "resolved": "resolved"}


class ChannelError(Exception):
    """It was not delivered. ``permanent``: it never will be like this. The message is one line, without any secret."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True, slots=True)
class Message:
    """``id`` is the same at every attempt; ``data`` is JSON for programs."""

    id: str
    subject: str
    text: str
    data: dict[str, Any]


def compose(message_id: str, items: Sequence[tuple[str, dict[str, Any]]], template: str | None = None) -> Message:
    """What is told of some alerts: (transition, alert) each. A template says how one reads."""
    made = [_text(transition, alert, template) for transition, alert in items]
    data = {"id": message_id, "alerts": [{"transition": transition} | alert for transition, alert in items]}
    return Message(message_id, _subject(items), "\n\n".join(made)[:MAX_TEXT] + "\n", data)


def _subject(items: Sequence[tuple[str, dict[str, Any]]]) -> str:
    transition, alert = items[-1]
    head = f"[{_word(transition, alert)}] {alert['severity']}: {alert['title']}"
    others = len({each["id"] for _, each in items}) - 1
    return plain(f"{head} (and {others} more)" if others else head)[:200]


def _text(transition: str, alert: dict[str, Any], template: str | None) -> str:
    fields = {name: "" if value is None else plain(str(value)) for name, value in alert.items()}
    fields["labels"] = plain(", ".join(f"{name}={value}" for name, value in sorted(alert["labels"].items())))
    fields["transition"] = transition
    if template is not None:
        return string.Template(template).safe_substitute(fields)
    lines = [f"{_word(transition, alert)} ({alert['severity']}): {fields['title']}"]
    lines += [fields["message"]] if fields["message"] else []
    if alert["value"] is not None and alert["threshold"] is not None:
        lines.append(f"value {alert['value']:g}, threshold {alert['threshold']:g}")
    lines += [fields["labels"]] if fields["labels"] else []
    times = [f"began {fields['started_at']}"] if alert["started_at"] else []
    times += [f"over since {fields['resolved_at']}"] if alert["resolved_at"] else []
    lines.append("; ".join([*times, f"ops alert show {alert['id']}"]))
    return "\n".join(lines)


def _word(transition: str, alert: dict[str, Any]) -> str:
    """As it is now: what was to be told of late may be over by now."""
    if transition != "resolved" and alert["status"] == "resolved":
        return "was firing, is resolved"
    return _WORDS[transition]


def plain(text: str) -> str:
    """One line without control characters."""
    return _CONTROL.sub("", text.replace("\n", " "))[:MAX_LINE]
