"""Field-level encryption: Fernet under a subkey per field, with the id of the key in front of every token.

A stored value reads ``v1:<key id>:<Fernet token>``. The token is sealed with a subkey that HKDF-SHA256 derives from
the master key and the field's label, so a ciphertext moved to another column does not open. The key id makes opening
a value with ten keys as cheap as with one, since Fernet tokens do not name their key.

Master keys come from the environment only: ``ENCRYPTION_KEY`` (a Fernet key), ``ENCRYPTION_PASSWORD`` with
``ENCRYPTION_SALT`` (PBKDF2-HMAC-SHA256, 600,000 iterations by default: OWASP's figure), and more in
``OPS_ENCRYPTION_KEYS``. They are derived once per process and stand in no repr, cache key, exception or migration.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from sqlalchemy import ClauseElement, Text, event
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.sql.operators import OperatorType, eq, is_, is_not
from sqlalchemy.sql.visitors import iterate
from sqlalchemy.types import TypeDecorator

from db.errors import DecryptionError, EncryptionError, SettingsError
from db.settings import EXAMPLES, Settings, get_settings

VERSION = "v1"
_KEY_ID = re.compile(r"^[A-Za-z0-9_-]{1,32}$")


def new_key() -> str:
    """A fresh master key for ENCRYPTION_KEY: 32 random bytes, base64."""
    return Fernet.generate_key().decode()


class Timing:
    """How often something was done in this process, and how long that took; two additions, so always on.

    Threads that add at once may lose a count now and then: it is a measure, not a ledger.
    """

    __slots__ = ("count", "failures", "seconds")

    def __init__(self) -> None:
        self.count = self.failures = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


#: Of Fernet's work alone, for those who watch it.
sealed, opened = Timing(), Timing()


class MasterKey:
    """One master key: 32 secret bytes and a public id."""

    __slots__ = ("_fields", "_lock", "_secret", "id")

    def __init__(self, secret: bytes, key_id: str | None = None) -> None:
        self._secret = secret
        # An id that tells nothing of the key: a one-way derivation under a label no field can have.
        self.id = key_id or hashlib.sha256(b"ops key id\0" + self._expand("\0key id")).hexdigest()[:8]
        self._fields: dict[str, Fernet] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<MasterKey {self.id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a master key does not leave its process")

    def _expand(self, label: str) -> bytes:
        return HKDF(SHA256(), length=32, salt=None, info=b"ops field\0" + label.encode()).derive(self._secret)

    def fernet(self, label: str) -> Fernet:
        """The cipher of one field; derived once per process (about 4 us)."""
        cipher = self._fields.get(label)
        if cipher is None:
            with self._lock:
                cipher = self._fields.setdefault(label, Fernet(base64.urlsafe_b64encode(self._expand(label))))
        return cipher


class Keyring:
    """All live master keys; the first seals, all of them open."""

    def __init__(self, keys: Iterable[MasterKey]) -> None:
        self._keys: dict[str, MasterKey] = {}
        self.primary: MasterKey | None = None
        for key in keys:
            if key.id in self._keys:
                raise SettingsError(f"two encryption keys have the id {key.id}")
            self.primary = self.primary or key
            self._keys[key.id] = key

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._keys) or 'empty'}>"

    def __iter__(self) -> Iterator[MasterKey]:
        return iter(self._keys.values())

    @property
    def ids(self) -> list[str]:
        """The ids of all keys, the sealing one first."""
        return list(self._keys)

    def seal(self, plaintext: str, label: str) -> str:
        """Encrypt one value for one field. Raises EncryptionError when there is no key."""
        if self.primary is None:
            raise _no_key()
        start = time.perf_counter()
        token = self.primary.fernet(label).encrypt(plaintext.encode("utf-8", "surrogatepass"))
        sealed.add(time.perf_counter() - start)
        return f"{VERSION}:{self.primary.id}:{token.decode()}"

    def open(self, stored: str, label: str) -> str:
        """Decrypt one value of one field. Raises DecryptionError with the reason."""
        version, _, rest = stored.partition(":")
        key_id, _, token = rest.partition(":")
        if version != VERSION or not token:
            raise DecryptionError(label, None, "it is not an encrypted value")
        key = self._keys.get(key_id)
        if key is None:
            raise DecryptionError(label, key_id, "this process does not hold that key")
        start = time.perf_counter()
        try:
            return key.fernet(label).decrypt(token.encode()).decode("utf-8", "surrogatepass")
        except (InvalidToken, ValueError):
            opened.failures += 1
            raise DecryptionError(label, key_id, "damaged, or sealed for another field or key") from None
        finally:
            opened.add(time.perf_counter() - start)


def _no_key() -> EncryptionError:
    return SettingsErrorAsEncryption(
        "no encryption key; set ENCRYPTION_KEY to " + EXAMPLES["ENCRYPTION_KEY"],
        hint="ops encryption-key new",
    )


class SettingsErrorAsEncryption(EncryptionError, SettingsError):
    """No encryption key is set."""

    exit_code = 2


def _fernet_secret(name: str, text: str) -> bytes:
    try:
        # Strictly: what is left of a mangled key must not pass for another key.
        secret = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise SettingsError(f"{name} is malformed: 32 bytes in base64 are needed, {EXAMPLES['ENCRYPTION_KEY']}")
    return secret


def _derive(password: str, salt: str, iterations: int) -> bytes:
    if len(salt) < 8:
        raise SettingsError(f"ENCRYPTION_SALT is too short; needed: {EXAMPLES['ENCRYPTION_SALT']}")
    kdf = PBKDF2HMAC(SHA256(), length=32, salt=salt.encode(), iterations=iterations)
    return kdf.derive(password.encode())


def _configured_keys(settings: Settings) -> Iterable[MasterKey]:
    """ENCRYPTION_KEY first; then OPS_ENCRYPTION_KEYS; then the password's key. The first of all seals."""
    if settings.encryption_key:
        yield MasterKey(_fernet_secret("ENCRYPTION_KEY", settings.encryption_key.get_secret_value()))
    if settings.encryption_keys:
        for entry in settings.encryption_keys.get_secret_value().split(","):
            key_id, _, text = entry.strip().partition(":")
            if not _KEY_ID.match(key_id) or not text:
                raise SettingsError(f"OPS_ENCRYPTION_KEYS is malformed; for example {EXAMPLES['OPS_ENCRYPTION_KEYS']}")
            yield MasterKey(_fernet_secret("OPS_ENCRYPTION_KEYS", text), key_id)
    if settings.encryption_password:
        if settings.encryption_salt is None:
            raise SettingsError(f"ENCRYPTION_SALT is not set; needed: {EXAMPLES['ENCRYPTION_SALT']}")
        password, salt = settings.encryption_password, settings.encryption_salt
        yield MasterKey(_derive(password.get_secret_value(), salt.get_secret_value(), settings.pbkdf2_iterations))


_keyring: Keyring | None = None
_keyring_lock = threading.Lock()


def get_keyring() -> Keyring:
    """The keys of this process; derived on first use (about 0.1 s with a password), then kept."""
    global _keyring
    if _keyring is None:
        with _keyring_lock:
            if _keyring is None:
                _keyring = Keyring(_configured_keys(get_settings()))
    return _keyring


def reset_keyring() -> None:
    """Forget the keys, so that the next use reads the settings again."""
    global _keyring
    _keyring = None


def encrypt_field(plaintext: str, label: str = "field") -> str:
    """Encrypt a value by hand; the same label is needed to open it."""
    return get_keyring().seal(plaintext, label)


def decrypt_field(stored: str, label: str = "field") -> str:
    """Open a value sealed by :func:`encrypt_field`. Raises DecryptionError."""
    return get_keyring().open(stored, label)


class Encrypted(TypeDecorator[str]):
    """A text column that is encrypted in the database and plain ``str`` on the model's attribute.

    ``label`` is part of the key derivation and must stay what it was when the values were written: use
    ``table.column``. None stays NULL, and the empty string comes back as itself.
    """

    impl = Text
    cache_ok = True

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        if not isinstance(value, str):
            raise TypeError(f"{self.label} takes text")
        return get_keyring().seal(value, self.label)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else get_keyring().open(value, self.label)

    def process_literal_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002
        raise TypeError(f"{self.label} is encrypted and cannot be written as a literal")

    class Comparator(TypeDecorator.Comparator[str]):
        """Every token is different, so a comparison would silently find nothing: refuse it."""

        def operate(self, op: OperatorType, *other: Any, **kwargs: Any) -> Any:
            if op in (is_, is_not) and other[0] is None:
                return super().operate(op, *other, **kwargs)
            # SQLAlchemy looks columns up in dictionaries, which asks whether two of one hash are one.
            if op is eq and isinstance(other[0], ClauseElement) and hash(other[0]) == hash(self.expr):
                return super().operate(op, *other, **kwargs)
            raise TypeError("an encrypted column cannot be compared or sorted; only `is_(None)` has a meaning")

        def reverse_operate(self, *_: Any, **__: Any) -> NoReturn:
            raise TypeError("an encrypted column cannot be compared or sorted")

    @property
    def comparator_factory(self) -> Callable[..., Any]:  # type: ignore[override]
        return Encrypted.Comparator


@event.listens_for(Session, "do_orm_execute")
def _refuse_to_sort(state: ORMExecuteState) -> None:
    """Naming a column in ORDER BY or GROUP BY is no operation on it, so its comparator cannot refuse that."""
    for clauses in ("_order_by_clauses", "_group_by_clauses"):
        for clause in getattr(state.statement, clauses, ()):
            if any(isinstance(getattr(part, "type", None), Encrypted) for part in iterate(clause)):
                raise TypeError("an encrypted column cannot be compared or sorted")
