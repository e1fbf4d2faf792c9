"""Everything that Apprise reaches: chats, pagers, telephones. The address is a secret as a whole."""

from __future__ import annotations

import logging
from typing import Any

from tasks.channels.message import ChannelError, Message


def send(config: dict[str, Any], message: Message) -> None:
    """Raises ChannelError. Apprise says only whether it worked."""
    try:
        import apprise
    except ImportError:
        raise ChannelError("the extra `notify` is not installed: pip install 'ai-manage-ops[notify]'") from None
    # Its log shows addresses.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    service = apprise.Apprise()
    if not service.add(config["url"]):
        raise ChannelError("Apprise does not know this kind of address, or finds it incomplete", permanent=True)
    kind = apprise.NotifyType.FAILURE if _is_bad(message) else apprise.NotifyType.SUCCESS
    try:
        taken = service.notify(body=message.text, title=message.subject, notify_type=kind)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything, with the address in it
        raise ChannelError(f"the service could not be told ({type(error).__name__})") from None
    if not taken:
        raise ChannelError("the service did not take it")


def _is_bad(message: Message) -> bool:
    return any(alert["status"] != "resolved" for alert in message.data["alerts"])
