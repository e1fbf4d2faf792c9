"""The broker, who works, and how old the last backup is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from db.connection import get_db_session
from db.errors import OpsError
from db.repositories.stats import StatsRepository
from db.settings import get_settings
from worker.doctor.configuration import is_weak
from worker.doctor.finding import Finding, critical, note, ok, warning
from worker.schedule import TICKS

#: A nightly backup, and some patience.
BACKUP_AGE = timedelta(hours=26)


def broker() -> Iterator[Finding]:
    """Reached by TLS, by a socket of this machine, or at least by loopback; never without a password elsewhere."""
    try:
        url = get_settings().require_broker_url()
    except OpsError as error:
        yield critical("broker", str(error), "set OPS_BROKER_URL")
        return
    parts = urlsplit(url)
    if "socket" in parts.scheme or parts.scheme == "unix":
        yield ok("broker", "a socket of this machine")
    elif parts.scheme == "rediss":
        checked = parse_qs(parts.query).get("ssl_cert_reqs", ["required"])[0].lower()
        if checked in ("none", "cert_none", "optional", "cert_optional"):
            yield critical(
                "broker", f"TLS with ssl_cert_reqs={checked}: anybody may pose as it", "ssl_cert_reqs=required"
            )
        else:
            yield ok("broker", "TLS, and its certificate is checked")
    elif is_loopback(parts.hostname):
        yield ok("broker", "on this machine's loopback")
    elif get_settings().is_private(parts.hostname):
        yield note(
            "broker", f"{parts.hostname} is reached in plain text, on a network declared private (OPS_PRIVATE_HOSTS)",
            "let nothing else join that network; across machines use rediss:// (TLS)",
        )  # fmt: skip
    else:
        yield critical("broker", f"{parts.hostname} is reached in plain text", "use rediss:// (TLS)")
    if "socket" not in parts.scheme and not is_loopback(parts.hostname) and is_weak(parts.password or "", 12):
        yield critical(
            "broker", "it has no password, or one that is easy to guess", "set requirepass, and give it in the URL"
        )


def is_loopback(host: str | None) -> bool:
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def processes() -> Iterator[Finding]:
    """Somebody works, and somebody beats."""
    with get_db_session(read_only=True) as session:
        stats = StatsRepository(session)
        alive = [row for row in stats.processes() if row.alive]
        ticks = {tick.name: tick.last_success_at for tick in stats.ticks()}
    kinds = {row.kind for row in alive}
    for kind, do in (("worker", "celery -A worker.app worker"), ("beat", "celery -A worker.app beat")):
        if kind in kinds:
            count = sum(row.kind == kind for row in alive)
            yield ok("processes", f"{count} {kind}{'s' if count > 1 else ''} alive")
        else:
            yield warning("processes", f"no {kind} was seen in the last 20 seconds", f"ops up, or {do}")
    for name, (_, seconds) in TICKS.items():
        last = ticks.get(name)
        if "beat" in kinds and last is not None and datetime.now(UTC) - last > timedelta(seconds=seconds * 3 + 60):
            yield warning("ticks", f"{name} last succeeded at {last:%Y-%m-%d %H:%M} UTC", "see the log of the workers")


def backup() -> Iterator[Finding]:
    """The file that a backup touches when it has succeeded, where one is named."""
    stamp = get_settings().backup_stamp
    if stamp is None:
        yield note(
            "backup", "none is declared", "let it touch a file, and name that in OPS_BACKUP_STAMP (docs/backup.md)"
        )
        return
    try:
        age = timedelta(seconds=time.time() - Path(stamp).stat().st_mtime)
    except OSError as error:
        yield critical("backup", f"{stamp}: {error.strerror}", "make a backup now (docs/backup.md)")
        return
    hours = age.total_seconds() / 3600
    if age > BACKUP_AGE:
        yield critical("backup", f"the last one is {hours:.0f} hours old", "make a backup now (docs/backup.md)")
    else:
        yield ok("backup", f"the last one is {hours:.1f} hours old")


CHECKS = (broker, processes, backup)
