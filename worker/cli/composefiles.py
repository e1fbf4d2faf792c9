"""The files under ``secrets/`` that docker-compose.yml mounts: passwords made here, and what ``.env`` holds already."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from db.errors import Refused

FOLDER = "secrets"
#: The users of the images: ours, and that of PostgreSQL's and Valkey's.
IMAGE_UID, SERVER_UID = 10001, 999
#: What the servers read themselves.
OF_SERVERS = ("postgres_password", "valkey_acl")
#: From the file of settings: file, variable.
FROM_ENV = {
    "encryption_key": "ENCRYPTION_KEY",
    "secret_key": "SECRET_KEY",
    "audit_seal_key": "OPS_AUDIT_SEAL_KEY",
    "metrics_token": "OPS_METRICS_TOKEN",
    "flower_basic_auth": "FLOWER_BASIC_AUTH",
}
#: What the platform, Celery and Flower do with a broker, by running the tests of the compose stack and reading what was
#: refused (`ACL LOG`). No KEYS, FLUSHALL, CONFIG, SHUTDOWN, scripts or modules; no key and no channel of anybody else.
VALKEY_ACL = """user default off
user ping on nopass resetkeys resetchannels -@all +ping
user ops on >{password} resetkeys resetchannels {keys} {channels} -@all {commands}
"""
KEYS = ("deployments*", "checks*", "control*", "celery*", "_kombu.*", "*.pidbox", "*.pidbox*", "unacked*", "ops.*")
CHANNELS = ("/0.celeryev/*", "/0.celery.pidbox")
COMMANDS = (
    "auth hello ping select client|setinfo client|setname multi exec discard watch unwatch",
    "lpush rpush rpop brpop llen sadd srem smembers zadd zrem zrange zrangebyscore hget hdel set del type exists",
    "pexpire publish subscribe unsubscribe psubscribe punsubscribe evalsha script|load script|exists time",
)


def owner() -> tuple[int, int]:
    """Who runs the platform's containers: whoever writes the files; for root, the image's own user."""
    return (os.getuid(), os.getgid()) if os.getuid() else (IMAGE_UID, IMAGE_UID)


def write(folder: Path, settings: Mapping[str, str]) -> list[Path]:
    """Write the files that are missing; those that are there stay as they are. Answers the new ones.

    Each is for the one user that reads it. Where only root could give the servers theirs, others may read those two,
    in a folder that is closed to others. Raises Refused when they cannot be written.
    """
    target = folder / FOLDER
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        wanted = _contents(target, settings)
        return [_write(target / name, text) for name, text in wanted.items() if not (target / name).exists()]
    except OSError as error:
        raise Refused(f"{target} cannot be written: {error.strerror}") from None


def _contents(target: Path, settings: Mapping[str, str]) -> dict[str, str]:
    # Those that belong together are made together: of a set of which a part is there, the rest would not fit.
    database = {"postgres_password", "database_admin_url", "database_owner_url", "database_url", "database_url_pooled",
                "pgbouncer_users"}  # fmt: skip
    broker = {"valkey_acl", "broker_url"}
    for group in (database, broker):
        there = {name for name in group if (target / name).exists()}
        if there and there != group:
            missing = ", ".join(sorted(group - there))
            raise Refused(
                f"{target} lacks {missing}, which belong to the others", hint=f"remove {target} to start anew"
            )
    admin, own, app, line = (secrets.token_urlsafe(24) for _ in range(4))
    made = {
        "postgres_password": admin,
        "database_admin_url": _url("postgres", admin, "postgres:5432"),
        "database_owner_url": _url("ops_owner", own, "postgres:5432"),
        "database_url": _url("ops_app", app, "postgres:5432"),
        "database_url_pooled": _url("ops_app", app, "pgbouncer:6432"),
        "pgbouncer_users": f'"ops_app" "{app}"',
        "broker_url": f"redis://ops:{line}@valkey:6379/0",
        "valkey_acl": acl(line),
    }
    return made | {name: settings[variable] for name, variable in FROM_ENV.items()}


def acl(password: str) -> str:
    """Valkey's users: ours with no more rights than it needs, and one for health checks that may only ping."""
    words = {
        "keys": " ".join(f"~{key}" for key in KEYS),
        "channels": " ".join(f"&{channel}" for channel in CHANNELS),
        "commands": " ".join(f"+{command}" for line in COMMANDS for command in line.split()),
    }
    return VALKEY_ACL.format(password=password, **words)


def _url(user: str, password: str, host: str) -> str:
    return f"postgresql://{user}:{password}@{host}/ops"


def _write(path: Path, text: str) -> Path:
    is_servers = path.name in OF_SERVERS
    mode = 0o644 if is_servers and os.getuid() else 0o600
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(text.rstrip("\n") + "\n")
        os.fchmod(file.fileno(), mode)
        if not os.getuid():
            reader = SERVER_UID if is_servers else IMAGE_UID
            os.fchown(file.fileno(), reader, reader)
    return path
