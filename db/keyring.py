"""Master keys: where they come from, what each is called, which one seals.

They come from the environment only: ``ENCRYPTION_KEY`` (a Fernet key), ``ENCRYPTION_PASSWORD`` with
``ENCRYPTION_SALT`` (PBKDF2-HMAC-SHA256, 600,000 iterations by default: OWASP's figure), and more of both kinds in
``OPS_ENCRYPTION_KEYS``. All of them open; the one that ``OPS_ENCRYPTION_PRIMARY`` names seals, else the first. They
are derived once per process and stand in no repr, cache key, exception or migration.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from db.errors import DecryptionError, EncryptionError, SettingsError
from db.settings import EXAMPLES, PBKDF2_ITERATIONS, Settings, get_settings

VERSION = "v1"
#: The second word of an entry that is a password.
PASSWORD_KIND = "pbkdf2"  # noqa: S105 - the name of a kind
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MIN_SALT = 8


def new_key() -> str:
    """A fresh master key for ENCRYPTION_KEY: 32 random bytes, base64."""
    return Fernet.generate_key().decode()


def is_key_id(text: str) -> bool:
    return _KEY_ID.fullmatch(text) is not None


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
    """One master key: 32 secret bytes, a public id, and the variable it came from."""

    __slots__ = ("_fields", "_lock", "_secret", "id", "source")

    def __init__(self, secret: bytes, key_id: str | None = None, source: str = "") -> None:
        self._secret = secret
        # An id that tells nothing of the key: a one-way derivation under a label no field can have.
        self.id = key_id or hashlib.sha256(b"ops key id\0" + self._expand("\0key id")).hexdigest()[:8]
        self.source = source
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
    """All live master keys; one seals (the first, unless another is named), all of them open."""

    def __init__(self, keys: Iterable[MasterKey], primary: str | None = None) -> None:
        self._keys: dict[str, MasterKey] = {}
        for key in keys:
            if key.id in self._keys:
                raise SettingsError(f"two encryption keys have the id {key.id}")
            self._keys[key.id] = key
        if primary is not None and primary not in self._keys:
            held = ", ".join(self._keys) or "none"
            raise SettingsError(f"OPS_ENCRYPTION_PRIMARY names the key {primary}; the keys given are: {held}")
        self.primary = self._keys[primary] if primary else next(iter(self._keys.values()), None)

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._keys) or 'empty'}>"

    def __iter__(self) -> Iterator[MasterKey]:
        return iter(self._keys.values())

    def get(self, key_id: str) -> MasterKey | None:
        return self._keys.get(key_id)

    @property
    def ids(self) -> list[str]:
        """The ids of all keys, the sealing one first."""
        return sorted(self._keys, key=lambda key_id: self._keys[key_id] is not self.primary)

    @property
    def prefix(self) -> str:
        """How a value begins that is sealed with the primary key. Raises EncryptionError when there is no key."""
        if self.primary is None:
            raise _no_key()
        return f"{VERSION}:{self.primary.id}:"

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
        # Called for each of many values: beside Fernet's six microseconds, one more counts.
        parts = stored.split(":", 2)
        if len(parts) != 3 or parts[0] != VERSION or not parts[2]:
            raise DecryptionError(label, None, "it is not an encrypted value")
        _, key_id, token = parts
        key = self._keys.get(key_id)
        if key is None:
            # What stands there may be anything: only what can be an id is repeated.
            raise DecryptionError(label, key_id if is_key_id(key_id) else None, "this process does not hold that key")
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


def _base64(text: str) -> bytes:
    """Strictly, in either alphabet: what is left of a mangled key must not pass for another. Empty where it is none."""
    try:
        return base64.b64decode(text.translate(_STANDARD).encode(), validate=True)
    except ValueError:
        return b""


_STANDARD = str.maketrans("-_", "+/")


def _fernet_secret(name: str, text: str) -> bytes:
    secret = _base64(text)
    if len(secret) != 32:
        raise SettingsError(f"{name} is malformed: 32 bytes in base64 are needed, {EXAMPLES['ENCRYPTION_KEY']}")
    return secret


def _derive(password: bytes, salt: bytes, iterations: int) -> bytes:
    return PBKDF2HMAC(SHA256(), length=32, salt=salt, iterations=iterations).derive(password)


def password_entry(key_id: str, password: str, salt: bytes, iterations: int) -> str:
    """A password as an entry of OPS_ENCRYPTION_KEYS: in base64, so that it may hold any character."""
    words = (base64.b64encode(part).decode() for part in (salt, password.encode("utf-8", "surrogateescape")))
    return ":".join((key_id, PASSWORD_KIND, str(iterations), *words))


def split_entries(text: str) -> list[str]:
    """The entries of OPS_ENCRYPTION_KEYS."""
    return [entry.strip() for entry in text.split(",")] if text.strip() else []


def _listed_key(number: int, entry: str) -> MasterKey:
    """``id:key``, or ``id:pbkdf2:iterations:salt:password`` with salt and password in base64."""
    name = "OPS_ENCRYPTION_KEYS"
    key_id, _, rest = entry.partition(":")
    if not is_key_id(key_id) or not rest:
        raise SettingsError(f"{name}: entry {number} is malformed; for example {EXAMPLES[name]}")
    kind, *words = rest.split(":")
    if kind != PASSWORD_KIND:
        return MasterKey(_fernet_secret(f"{name}: the key {key_id}", rest), key_id, name)
    if len(words) != 3:
        raise SettingsError(f"{name}: the key {key_id} is malformed; a password reads {_PASSWORD_EXAMPLE}")
    iterations, salt, password = words[0], _base64(words[1]), _base64(words[2])
    low, high = PBKDF2_ITERATIONS
    if not re.fullmatch(r"[0-9]{1,9}", iterations) or not low <= int(iterations) <= high:
        raise SettingsError(f"{name}: the iterations of the key {key_id} must be a number from {low} to {high}")
    if len(salt) < _MIN_SALT:
        raise SettingsError(f"{name}: the salt of the key {key_id} must be at least {_MIN_SALT} bytes in base64")
    if not password:
        raise SettingsError(f"{name}: the password of the key {key_id} must be given in base64")
    return MasterKey(_derive(password, salt, int(iterations)), key_id, name)


_PASSWORD_EXAMPLE = f"id:{PASSWORD_KIND}:600000:<salt>:<password>, salt and password in base64"


def _configured_keys(settings: Settings) -> Iterable[MasterKey]:
    """ENCRYPTION_KEY first; then OPS_ENCRYPTION_KEYS; then the password's key."""
    if settings.encryption_key:
        text = settings.encryption_key.get_secret_value()
        yield MasterKey(_fernet_secret("ENCRYPTION_KEY", text), source="ENCRYPTION_KEY")
    if settings.encryption_keys:
        for number, entry in enumerate(split_entries(settings.encryption_keys.get_secret_value()), 1):
            yield _listed_key(number, entry)
    if settings.encryption_password:
        salt = settings.encryption_salt.get_secret_value() if settings.encryption_salt else None
        if salt is None:
            raise SettingsError(f"ENCRYPTION_SALT is not set; needed: {EXAMPLES['ENCRYPTION_SALT']}")
        if len(salt) < _MIN_SALT:
            raise SettingsError(f"ENCRYPTION_SALT is too short; needed: {EXAMPLES['ENCRYPTION_SALT']}")
        password = settings.encryption_password.get_secret_value()
        yield MasterKey(
            _derive(password.encode(), salt.encode(), settings.pbkdf2_iterations), source="ENCRYPTION_PASSWORD"
        )


_keyring: Keyring | None = None
_keyring_lock = threading.Lock()


def get_keyring() -> Keyring:
    """The keys of this process; derived on first use (about 0.1 s per password), then kept. Raises SettingsError."""
    global _keyring
    if _keyring is None:
        with _keyring_lock:
            if _keyring is None:
                settings = get_settings()
                _keyring = Keyring(_configured_keys(settings), settings.encryption_primary)
    return _keyring


def reset_keyring() -> None:
    """Forget the keys, so that the next use reads the settings again."""
    global _keyring
    _keyring = None
