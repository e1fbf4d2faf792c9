"""Seals over the audit trail: who can write the database cannot change an entry without its being found.

A seal holds the hashes of a run of entries in the order of (xid, id), names the seal before it, and is signed with a
key that the database never sees. No function of the database is trusted for any of it: an entry's hash is SHA-256 over
the line that ``COPY ... TO`` gives for it, and everything else is computed here.

The signing key is ``OPS_AUDIT_SEAL_KEY``: an Ed25519 private key, 32 bytes in base64. To verify, its public half is
enough (``OPS_AUDIT_VERIFY_KEY``, several with commas: those of former keys stay there for good).
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import NamedTuple, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from db.errors import SettingsError
from db.settings import EXAMPLES, Settings, get_settings

#: The columns of an entry's canonical line, by the number of the form; a seal names its own.
FORMS: dict[int, tuple[str, ...]] = {
    1: (
        "id", "xid", "at", "action", "resource_type", "resource_id", "actor_type", "actor_id", "actor", "client",
        "ip_address", "user_agent", "request_id", "task_id", "db_user", "changes", "details",
    ),
}  # fmt: skip
FORM = max(FORMS)
#: Before the first seal.
ZERO = bytes(32)
#: Of each entry a seal holds its id and the first half of its hash; the whole hashes are in ``root``.
ENTRY = struct.Struct(">q16s")
_PURPOSE = b"ops audit seal\n"


class Position(NamedTuple):
    """A place in the trail's order."""

    xid: int
    id: int


START = Position(0, 0)


class Entry(NamedTuple):
    """One entry, as its seal sees it."""

    xid: int
    id: int
    hash: bytes
    line: bytes

    @property
    def at(self) -> str:
        """When it was written: ISO, UTC."""
        return self.line.split(b"\t", 3)[2].decode()

    @property
    def month(self) -> str:
        """``YYYY-MM``: the partition it is in."""
        return self.at[:7]


def read(line: bytes) -> Entry:
    """An entry from its canonical line."""
    id_, xid, _ = line.split(b"\t", 2)
    return Entry(int(xid), int(id_), hashlib.sha256(line).digest(), line)


@dataclass(frozen=True, slots=True)
class Seal:
    """One seal.

    ``cluster``: the database system's identifier, since transaction ids of another mean nothing here. ``epoch``: after
    a restore into another cluster a new one begins, whose entries are those with an id above ``floor_id``.
    ``highest_id``: the highest id of an entry in this and all seals before. The entries are those after ``from_*`` up
    to and including ``to_*``; all are of one month, so that dropping a month leaves whole seals without entries.
    Transactions from ``next_xid`` on began after ``sealed_at``.
    """

    number: int
    sealed_at: datetime
    cluster: int
    epoch: int
    floor_id: int
    highest_id: int
    from_xid: int
    from_id: int
    to_xid: int
    to_id: int
    next_xid: int
    count: int
    first_at: datetime
    last_at: datetime
    form: int
    entries: bytes
    root: bytes
    previous: bytes
    digest: bytes
    key_id: str
    signature: bytes

    @property
    def start(self) -> Position:
        return Position(self.from_xid, self.from_id)

    @property
    def end(self) -> Position:
        return Position(self.to_xid, self.to_id)

    @property
    def month(self) -> str:
        return f"{self.first_at.astimezone(UTC):%Y-%m}"

    def hashes(self) -> Iterator[tuple[int, bytes]]:
        """Id and shortened hash of each entry, in order."""
        return ENTRY.iter_unpack(self.entries)

    def compute_digest(self) -> bytes:
        """SHA-256 over everything but the digest and the signature themselves."""
        said: dict[str, object] = {}
        for field in fields(self):
            if field.name in ("digest", "signature"):
                continue
            value = getattr(self, field.name)
            if isinstance(value, datetime):
                value = value.astimezone(UTC).isoformat(timespec="microseconds")
            elif isinstance(value, bytes):
                value = hashlib.sha256(value).hexdigest() if field.name == "entries" else value.hex()
            said[field.name] = value
        return hashlib.sha256(_PURPOSE + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).digest()


def bind(entries: Sequence[Entry]) -> tuple[bytes, bytes]:
    """What a seal holds of its entries: ``entries`` and ``root``."""
    root = hashlib.sha256()
    packed = bytearray()
    for _, id_, digest, _ in entries:
        root.update(digest)
        packed += ENTRY.pack(id_, digest[:16])
    return bytes(packed), root.digest()


class SealKey:
    """A public key: tells whether a seal is one."""

    __slots__ = ("_public", "id")

    def __init__(self, public: Ed25519PublicKey) -> None:
        self._public = public
        self.id = hashlib.sha256(b"ops audit key\n" + public.public_bytes_raw()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"<SealKey {self.id}>"

    def accepts(self, digest: bytes, signature: bytes) -> bool:
        """True when this key signed that digest."""
        try:
            self._public.verify(signature, digest)
        except InvalidSignature:
            return False
        return True


class Signer(SealKey):
    """The private key."""

    __slots__ = ("_private",)

    def __init__(self, private: Ed25519PrivateKey) -> None:
        super().__init__(private.public_key())
        self._private = private

    def __reduce__(self) -> NoReturn:
        raise TypeError("a seal key does not leave its process")

    def sign(self, seal: Seal) -> Seal:
        """The seal with its digest, this key's id and the signature."""
        seal = replace(seal, key_id=self.id)
        digest = seal.compute_digest()
        return replace(seal, digest=digest, signature=self._private.sign(digest))


class SealKeys:
    """What this process seals and verifies with."""

    def __init__(self, signer: Signer | None, others: Sequence[SealKey] = ()) -> None:
        self.signer = signer
        self._keys = {key.id: key for key in (*others, *((signer,) if signer else ()))}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def accept(self, digest: bytes, signature: bytes) -> bool:
        """True when any of these keys signed that digest."""
        return any(key.accepts(digest, signature) for key in self._keys.values())

    def flaw(self, seal: Seal) -> str | None:
        """Why this row is no seal of ours; None when it is one."""
        key = self._keys.get(seal.key_id)
        if key is None:
            return f"is signed with key {seal.key_id or '(none)'}, which this process does not know"
        if not key.accepts(seal.digest, seal.signature):
            return "has a wrong signature: it was forged or rewritten"
        if seal.compute_digest() != seal.digest:
            return "was rewritten: what it says is not what was signed"
        return None


def new_pair() -> tuple[str, str]:
    """A fresh private key and its public half, each 32 bytes in base64."""
    private = Ed25519PrivateKey.generate()
    return _base64(private.private_bytes_raw()), _base64(private.public_key().public_bytes_raw())


def seal_keys(settings: Settings | None = None) -> SealKeys:
    """The keys of this process; none of them is needed. Raises SettingsError for one that is malformed."""
    settings = settings or get_settings()
    signer = None
    if settings.audit_seal_key:
        secret = _decode("OPS_AUDIT_SEAL_KEY", settings.audit_seal_key.get_secret_value())
        signer = Signer(Ed25519PrivateKey.from_private_bytes(secret))
    words = (settings.audit_verify_key or "").replace(",", " ").split()
    others = [SealKey(Ed25519PublicKey.from_public_bytes(_decode("OPS_AUDIT_VERIFY_KEY", word))) for word in words]
    return SealKeys(signer, others)


def _base64(secret: bytes) -> str:
    return base64.b64encode(secret).decode()


def _decode(name: str, text: str) -> bytes:
    try:
        # Strictly: what is left of a mangled key must not pass for another key.
        found = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise SettingsError(f"{name} is malformed: 32 bytes in base64 are needed, {EXAMPLES[name]}")
    return found
