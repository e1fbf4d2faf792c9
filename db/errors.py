"""Every error this package raises on purpose.

::

    OpsError                        exit  what it means to a caller
    ├── SettingsError                2    a setting is missing or malformed
    ├── InvalidInput                 2    a value cannot be accepted as given
    ├── NotFound                     6    no such row
    ├── Refused                      5    understood, and not allowed
    │   ├── AlreadyExists                 a unique name is taken
    │   ├── Conflict                      the row is not in the state this needs, or somebody was faster
    │   ├── PermissionDenied              the actor's role does not allow it
    │   └── Throttled                     too many failed logins; try again later
    ├── Unavailable                  3    something the platform needs does not answer
    │   ├── DatabaseUnavailable
    │   ├── BrokerUnavailable
    │   └── SchemaOutOfDate               migrations have not been applied
    └── EncryptionError              3    a key is missing or wrong
        └── DecryptionError               one value does not open

The message is one line for a person; ``hint``, where there is one, says what to do next.
"""

from __future__ import annotations


class OpsError(Exception):
    """Something went wrong in a way the platform understands.

    Raised while a statement's values are prepared it stays what it is (`db.unwrapped`).
    """

    exit_code = 3

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.hint = hint


class SettingsError(OpsError):
    """A setting is missing or malformed."""

    exit_code = 2


class InvalidInput(OpsError):
    """The value cannot be accepted."""

    exit_code = 2


class NotFound(OpsError):
    """There is no such thing."""

    exit_code = 6


class Refused(OpsError):
    """This is not allowed."""

    exit_code = 5


class AlreadyExists(Refused):
    """The name is taken."""


class Conflict(Refused):
    """The row has changed in the meantime."""


class PermissionDenied(Refused):
    """The role of this user does not allow it."""


class Throttled(Refused):
    """Too many attempts to log in.

    ``retry_after`` says in how many seconds the next one is looked at.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many attempts to log in; try again in {retry_after} s")
        self.retry_after = retry_after


class Unavailable(OpsError):
    """Something the platform needs does not answer."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer."""


class BrokerUnavailable(Unavailable):
    """The broker does not answer."""


class SchemaOutOfDate(Unavailable):
    """The database lacks migrations; run: ops db upgrade"""


class EncryptionError(OpsError):
    """A key is missing or wrong."""


class DecryptionError(EncryptionError):
    """A stored value does not open.

    Carries where it stands (``field`` is ``table.column``) and which key it names, never the value. ``what`` names it
    for a person where the field alone would not.
    """

    def __init__(self, field: str, key_id: str | None, reason: str, *, what: str | None = None) -> None:
        super().__init__(f"{what or field} does not open with key {key_id or '(none named)'}: {reason}")
        self.field = field
        self.key_id = key_id
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecryptionError], tuple[str, str | None, str]]:
        return type(self), (self.field, self.key_id, self.reason)

    @property
    def table(self) -> str:
        return self.field.rpartition(".")[0]

    @property
    def column(self) -> str:
        return self.field.rpartition(".")[2]
