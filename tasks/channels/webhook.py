"""A signed POST of JSON.

``X-Ops-Signature`` is ``sha256=`` and the HMAC-SHA256, in hex, of the value of ``X-Ops-Timestamp`` (seconds since
1970), a full stop and the body. ``Idempotency-Key`` is the message's id, the same at every attempt: a receiver that
has seen it answers 200 and does nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

from tasks import http
from tasks.channels.message import ChannelError, Message

TIMEOUT_SECONDS = 15.0
#: Answers after which it is tried again; others of 400 and above are for good.
_PASSING = frozenset({408, 409, 423, 425, 429})


def send(config: dict[str, Any], message: Message) -> None:
    """Raises ChannelError."""
    body = json.dumps(message.data, ensure_ascii=False, separators=(",", ":")).encode()
    stamp = str(int(time.time()))
    headers = {
        **config.get("headers", {}),
        "Content-Type": "application/json",
        "Idempotency-Key": message.id,
        "X-Ops-Timestamp": stamp,
        "X-Ops-Signature": f"sha256={signature(str(config['secret']), stamp, body)}",
    }
    try:
        answer = http.request("POST", config["url"], timeout=TIMEOUT_SECONDS, headers=headers, body=body)
    except http.HttpError as error:
        raise ChannelError(str(error)) from None
    if 200 <= answer.status < 300:
        return
    permanent = 300 <= answer.status < 500 and answer.status not in _PASSING
    raise ChannelError(f"the receiver answered {answer.status}", permanent=permanent)


def signature(secret: str, stamp: str, body: bytes) -> str:
    """What the receiver computes as well."""
    return hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
