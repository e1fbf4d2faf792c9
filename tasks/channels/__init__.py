"""Ways to tell people: one module per kind, each with a ``send(config, message)``. No Celery, no session."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from db.states import ChannelKind
from tasks.channels.message import ChannelError, Message, compose

__all__ = ["ChannelError", "Message", "compose", "send"]


def send(kind: ChannelKind, config: dict[str, Any], message: Message) -> None:
    """Send by one kind, whose library is imported only now. Raises ChannelError."""
    import_module(f"tasks.channels.{kind.value}").send(config, message)
