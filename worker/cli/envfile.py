"""`.env` with fresh secrets; and changing the encryption keys in a file of our own."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dotenv import dotenv_values

from db.encryption import new_key
from db.errors import AlreadyExists, Refused, SettingsError
from db.seals import new_pair
from db.settings import env_files
from worker.cli import composefiles

TEMPLATE = ".env.example"
FRESH: dict[str, Callable[[], str]] = {
    "ENCRYPTION_KEY": new_key,
    "SECRET_KEY": lambda: secrets.token_urlsafe(48),
    "OPS_AUDIT_SEAL_KEY": lambda: new_pair()[0],
    "FLOWER_BASIC_AUTH": lambda: f"ops:{secrets.token_urlsafe(12)}",
    "OPS_UID": lambda: str(composefiles.owner()[0]),
    "OPS_GID": lambda: str(composefiles.owner()[1]),
    "OPS_METRICS_TOKEN": lambda: secrets.token_urlsafe(24),
}


def write(folder: Path) -> list[Path]:
    """The template with its blank secrets filled in, mode 0600, and the secrets of the compose stack; answers what is
    new. What is there stays as it is. Raises AlreadyExists when all of it is, SettingsError, Refused."""
    template = Path(__file__).parents[2] / TEMPLATE
    if not template.is_file():
        raise SettingsError(f"{TEMPLATE} is not here; it lies in the repository")
    path = folder / ".env"
    made = [] if path.exists() else [_fill_in(template.read_text("utf-8"), path)]
    # One that was written by hand, or by an earlier release, may lack some.
    fresh = {name: make() for name, make in FRESH.items()}
    given = {
        name: value for name, value in dotenv_values(path, encoding="utf-8-sig", interpolate=False).items() if value
    }
    made += composefiles.write(folder, fresh | given)
    if not made:
        raise AlreadyExists(
            f"{path} and {folder / composefiles.FOLDER} exist; nothing was written", hint="remove them to start anew"
        )
    return made


def _fill_in(text: str, path: Path) -> Path:
    for name, make in FRESH.items():
        text = re.sub(rf"^{name}=$", f"{name}={make()}", text, flags=re.MULTILINE)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path


def owned(names: Iterable[str], among: Iterable[str]) -> Path | None:
    """The file of ours that one of ``among`` comes from, where a change of ``names`` would have an effect; else None:
    a value of the environment wins over files, and one that is given as a file of its own is changed there."""
    names, spelled = list(names), [spelling for name in names for spelling in (name, f"{name}_FILE")]
    if any(os.environ.get(name) for name in spelled):
        return None
    for path in env_files():
        values = dotenv_values(path, encoding="utf-8-sig", interpolate=False)
        if any(values.get(name) for name in among):
            by_file = any(values.get(f"{name}_FILE") for name in names)
            return path if not by_file and path.stat().st_uid == os.geteuid() else None
        if any(values.get(name) for name in spelled):
            return None
    return None


def change(path: Path, values: Mapping[str, str | None]) -> None:
    """Set variables, or remove those that are None; all else stays as it is. The file is replaced in one step and is
    for its owner alone. Raises Refused when it cannot be written, or would not read as it should."""
    path = path.resolve()
    lines: list[str] = []
    left = dict(values)
    for line in path.read_text("utf-8").splitlines():
        found = re.match(r"\s*(?:export\s+)?(\w+)\s*=", line)
        name = found[1] if found else ""
        if name not in values:
            lines.append(line)
        elif (value := left.pop(name, None)) is not None:
            lines.append(f"{name}={value}")
    lines += [f"{name}={value}" for name, value in left.items() if value is not None]
    before = dotenv_values(path, interpolate=False)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        wanted = {name: value for name, value in {**before, **values}.items() if value is not None or name in before}
        wanted = {name: value for name, value in wanted.items() if values.get(name, "") is not None}
        if dotenv_values(fresh, interpolate=False) != wanted:
            raise Refused(f"{path} is written in a way that cannot be changed safely; change it by hand")
        fresh.replace(path)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from None
    finally:
        fresh.unlink(missing_ok=True)
