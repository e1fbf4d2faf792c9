"""What a change of keys means for the environment: said in words, or written to the settings file the keys are in."""

from __future__ import annotations

import base64
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import MetaData

from db.errors import InvalidInput, Refused
from db.keyring import MasterKey, split_entries
from db.settings import KEY_VARIABLES, get_settings
from worker.cli import envfile
from worker.cli.output import out

PRIMARY = "OPS_ENCRYPTION_PRIMARY"
KEYS = "OPS_ENCRYPTION_KEYS"


@dataclass(frozen=True)
class Change:
    """Variables and their new values (None: remove it), and the same in words that repeat no other key."""

    values: dict[str, str | None]
    lines: list[str]


def key_bytes(key: str) -> bytes:
    return base64.urlsafe_b64decode(key)


def _entries() -> list[str]:
    listed = get_settings().encryption_keys
    return split_entries(listed.get_secret_value()) if listed else []


def add(entry: str, *, seals_now: MasterKey) -> Change:
    """The new key at the end of the list. Where that would make it seal at once, name the one that does now."""
    entries = _entries()
    values: dict[str, str | None] = {KEYS: ",".join([*entries, entry])}
    lines = [f"{KEYS}={entry}" if not entries else f"{KEYS}, at its end: ,{entry}"]
    if seals_now.source == "ENCRYPTION_PASSWORD" and get_settings().encryption_primary is None:
        values[PRIMARY] = seals_now.id
        lines.append(f"{PRIMARY}={seals_now.id}")
    return Change(values, lines)


def promote(key_id: str) -> Change:
    return Change({PRIMARY: key_id}, [f"{PRIMARY}={key_id}"])


def retire(key: MasterKey) -> Change:
    """Without this key."""
    if key.source != KEYS:
        names = ("ENCRYPTION_PASSWORD", "ENCRYPTION_SALT") if key.source == "ENCRYPTION_PASSWORD" else (key.source,)
        return Change(dict.fromkeys(names), [f"remove {' and '.join(names)} for every process"])
    left = [entry for entry in _entries() if entry.partition(":")[0] != key.id]
    words = f"remove the entry {key.id}:... from {KEYS} for every process" if left else f"remove {KEYS}"
    return Change({KEYS: ",".join(left) or None}, [words])


def offer(change: Change, write: bool | None) -> Path | None:
    """Write the change to the file of ours that the keys come from, when asked to; None: it was not written. Raises
    Refused when it was asked for and there is no such file."""
    path = envfile.owned(change.values, KEY_VARIABLES)
    if path is None:
        if write:
            raise Refused("the keys do not come from a settings file of yours; change them where they come from")
        return None
    if write is None and sys.stdin.isatty() and not out.json:
        write = typer.confirm(f"Write this change to {path}?")
    if not write:
        return None
    envfile.change(path, change.values)
    return path


def load_metadata(spec: str) -> MetaData:
    """``module:name``: the metadata of that name, or of the declarative base of that name. Raises InvalidInput."""
    module_name, colon, path = spec.partition(":")
    if not colon or not module_name or not path:
        raise InvalidInput(f"{spec!r} does not name metadata; it reads MODULE:NAME, for example app.models:Base")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: applications are rarely installed
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"--metadata {spec} cannot be loaded: {error}") from None
    found = getattr(found, "metadata", found)
    if not isinstance(found, MetaData):
        raise InvalidInput(f"--metadata {spec} is neither metadata nor a declarative base")
    return found
