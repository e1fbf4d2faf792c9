"""What people write about hosts: how to reach them, in which order they get a release, what runs on them."""

from __future__ import annotations

import base64
import binascii
import re
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from db.fields import ADDRESS, SYSTEM_USER, AbsolutePath, Argv, Name, SecretName, Spec, Value, Variable, no_nul

MAX_KEY_LENGTH = 16_384


def _public_keys(value: str) -> str:
    """Lines of ``TYPE BASE64``, as in a server's ``ssh_host_*_key.pub``; comments are dropped."""
    kept = []
    for line in value.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            raw = base64.b64decode(words[1], validate=True)
        except (IndexError, binascii.Error, ValueError):
            raise ValueError("a public key a line is needed: TYPE BASE64, for example ssh-ed25519 AAAA...") from None
        if not raw.startswith(len(words[0]).to_bytes(4, "big") + words[0].encode("utf-8", "replace")):
            raise ValueError("a public key's type and the key itself say different things")
        kept.append(f"{words[0]} {words[1]}")
    if not kept:
        raise ValueError("there is no public key in it")
    return "\n".join(kept)


def _name_or_ip(value: str) -> str:
    if ":" in value:
        try:
            ip_address(value)
        except ValueError:
            raise ValueError("a colon is in IPv6 addresses alone; the port is named by itself") from None
    return value


PublicKeys = Annotated[str, Field(max_length=MAX_KEY_LENGTH), AfterValidator(no_nul), AfterValidator(_public_keys)]
Address = Annotated[str, StringConstraints(pattern=ADDRESS), AfterValidator(_name_or_ip)]


class HostSpec(Spec):
    """One machine of an infrastructure."""

    name: Name
    address: Address
    port: int = Field(22, ge=1, le=65535)
    host_key: PublicKeys | None = None


class HostOrder(Spec):
    """All hosts of an infrastructure, in the order of rollouts."""

    names: list[Name]


class Rollout(Spec):
    """In which order hosts get a release, and what follows where some say no.

    ``all``: every host in one batch. ``rolling``: ``batch`` hosts (a number, or ``"25%"``) at a time, and
    ``pause_seconds`` in between. A batch is over when each of its hosts is healthy or has failed; with more than
    ``max_failures`` failed hosts in all the rollout ends. Then ``on_failure`` says what becomes of the hosts that were
    switched: ``stop`` leaves them, ``rollback`` brings them back to the release that was last healthy on all hosts.
    Where hosts have failed the deployment has, however many were allowed to.
    """

    strategy: Literal["all", "rolling"] = "all"
    batch: Annotated[int, Field(ge=1, le=1000)] | Annotated[str, StringConstraints(pattern=r"^(100|[1-9]?[0-9])%$")] = 1
    pause_seconds: float = Field(0.0, ge=0, le=86_400)
    max_failures: int = Field(0, ge=0, le=1000)
    on_failure: Literal["stop", "rollback"] = "stop"
    #: How many hosts of one batch are worked on at once.
    at_once: int = Field(20, ge=1, le=100)


class HostSteps(Spec):
    """What runs on each host beside the application's command, which is what starts a release there.

    ``prepare``: in the new release's folder, before it is switched to. ``health``: until it exits with 0, as often as
    the health gate says. Each command is stopped being waited for after ``timeout_seconds``.
    """

    prepare: list[Argv] = Field(default_factory=list, max_length=20)
    health: Argv | None = None
    timeout_seconds: int = Field(600, ge=1, le=86_400)


class SshSettings(Spec):
    """Settings of the ``ssh`` driver. ``key``: the secret that holds the private key, of the infrastructure's owner.

    Releases are in ``base``/APPLICATION/releases on each host, and ``current`` beside them is the one that runs.
    ``sudo``: the user that commands run as (``sudo -n``); None: whoever logs in. ``lock``: a file that is held while
    a host is worked on; the same one for several applications makes them wait for each other.
    """

    user: Annotated[str, StringConstraints(pattern=SYSTEM_USER)]
    key: SecretName
    base: AbsolutePath = "/srv"
    sudo: Annotated[str, StringConstraints(pattern=SYSTEM_USER)] | None = None
    lock: AbsolutePath | None = None
    lock_seconds: float = Field(60.0, ge=0, le=3600)
    keep: int = Field(5, ge=1, le=100)
    connect_seconds: float = Field(10.0, ge=0.5, le=300)
    #: A connection that has been silent for three times as long is cut.
    keepalive_seconds: float = Field(5.0, ge=0.5, le=300)
    environment: dict[Variable, Value] = Field(default_factory=dict, max_length=200)

    @model_validator(mode="after")
    def _safe_paths(self) -> SshSettings:
        for path in (self.base, self.lock):
            if path is not None and (".." in path.split("/") or re.search(r"[\x00-\x1f\x7f]", path)):
                raise ValueError("base and lock are paths without '..' and control characters")
        return self
