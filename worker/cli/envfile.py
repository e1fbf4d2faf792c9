"""`.env` with fresh secrets."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from db.encryption import new_key
from db.errors import AlreadyExists, SettingsError
from db.seals import new_pair

TEMPLATE = ".env.example"
FRESH: dict[str, Callable[[], str]] = {
    "ENCRYPTION_KEY": new_key,
    "SECRET_KEY": lambda: secrets.token_urlsafe(48),
    "OPS_AUDIT_SEAL_KEY": lambda: new_pair()[0],
    "FLOWER_BASIC_AUTH": lambda: f"ops:{secrets.token_urlsafe(12)}",
    "OPS_POSTGRES_PASSWORD": lambda: secrets.token_urlsafe(24),
    "OPS_VALKEY_PASSWORD": lambda: secrets.token_urlsafe(24),
}


def write(folder: Path) -> Path:
    """The template with its blank secrets filled in, mode 0600. Raises AlreadyExists, SettingsError."""
    template = Path(__file__).parents[2] / TEMPLATE
    if not template.is_file():
        raise SettingsError(f"{TEMPLATE} is not here; it lies in the repository")
    text = template.read_text("utf-8")
    for name, make in FRESH.items():
        text = re.sub(rf"^{name}=$", f"{name}={make()}", text, flags=re.MULTILINE)
    path = folder / ".env"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists; nothing was written", hint="remove it first to start anew") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return path
