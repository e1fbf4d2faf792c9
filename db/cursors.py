"""Where the next page starts, as something that a client may keep and cannot make up.

A cursor names a row's key. Signed with ``SECRET_KEY`` it says nothing that the page before did not, and one that was
changed, or is a cursor of another list, is refused instead of answering with the wrong rows.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from db.errors import InvalidInput
from db.settings import get_settings

_KEY_BYTES, _SEAL_BYTES = 8, 16


def seal(noun: str, key: int) -> str:
    """The cursor of a row in a list: 32 characters, fit for an address. Raises SettingsError without SECRET_KEY."""
    raw = key.to_bytes(_KEY_BYTES, "big")
    return base64.urlsafe_b64encode(raw + _seal(noun, raw)).decode()


def open_(noun: str, cursor: str) -> int:
    """The key of the row. Raises InvalidInput for what is no cursor of this list, SettingsError without SECRET_KEY."""
    try:
        raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (TypeError, ValueError):
        raw = b""
    key, given = raw[:_KEY_BYTES], raw[_KEY_BYTES:]
    if not hmac.compare_digest(_seal(noun, key), given):
        raise InvalidInput(f"this is no cursor of {noun}; give the `next` of the page before as it was")
    return int.from_bytes(key, "big")


def _seal(noun: str, raw: bytes) -> bytes:
    secret = get_settings().require_secret_key()
    return hmac.digest(secret, b"ops cursor\0" + noun.encode() + b"\0" + raw, hashlib.sha256)[:_SEAL_BYTES]
