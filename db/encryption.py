"""Field-level encryption: Fernet under a subkey per field, with the id of the key in front of every token.

A stored value reads ``v1:<key id>:<Fernet token>``. The token is sealed with a subkey that HKDF-SHA256 derives from
the master key and the field's label, so a ciphertext moved to another column does not open. The key id makes opening
a value with ten keys as cheap as with one, since Fernet tokens do not name their key.

``secret: Mapped[str | None] = mapped_column(Encrypted("cards.pan"))`` is all that a model needs. Keys: `db.keyring`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from sqlalchemy import BinaryExpression, ClauseElement, Engine, Text, TypeCoerce, event
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import BooleanClauseList, Grouping, UnaryExpression
from sqlalchemy.sql.operators import OperatorType, eq, is_, is_not
from sqlalchemy.types import TypeDecorator

import db.unwrapped  # noqa: F401 - for whatever is raised here
from db.errors import DecryptionError
from db.keyring import VERSION, Keyring, MasterKey, get_keyring, new_key, reset_keyring

__all__ = [
    "VERSION",
    "Encrypted",
    "Keyring",
    "MasterKey",
    "Unreadable",
    "decrypt_field",
    "encrypt_field",
    "get_keyring",
    "new_key",
    "render_item",
    "reset_keyring",
]


def encrypt_field(plaintext: str, label: str = "field") -> str:
    """Encrypt a value by hand; the same label is needed to open it."""
    return get_keyring().seal(plaintext, label)


def decrypt_field(stored: str, label: str = "field") -> str:
    """Open a value sealed by :func:`encrypt_field`. Raises DecryptionError."""
    return get_keyring().open(stored, label)


class Unreadable:
    """Stands on the attribute for a stored value that does not open: one bad row does not hide the good ones.

    Whatever would use it as text raises its DecryptionError. It is no ``str``, so that nothing written in C (a join,
    a JSON encoder, a database driver) takes it for an empty one. It holds no ciphertext.
    """

    __slots__ = ("field", "key_id", "reason")

    def __init__(self, field: str, key_id: str | None, reason: str) -> None:
        self.field = field
        self.key_id = key_id
        self.reason = reason

    @property
    def error(self) -> DecryptionError:
        return DecryptionError(self.field, self.key_id, self.reason)

    def __repr__(self) -> str:
        return f"<unreadable {self.field}, key {self.key_id or '(none named)'}: {self.reason}>"

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str | None, str]]:
        return type(self), (self.field, self.key_id, self.reason)

    def __getattr__(self, name: str) -> NoReturn:
        # What text has is a use of the text; what only others ask for (``__deepcopy__``) is not there.
        if hasattr(str, name):
            raise self.error
        raise AttributeError(name)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise self.error

    __str__ = __bytes__ = __format__ = __bool__ = __len__ = __iter__ = __reversed__ = __contains__ = _refuse
    __getitem__ = __hash__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __int__ = __float__ = __index__ = _refuse


class Encrypted(TypeDecorator[str]):
    """A text column that is encrypted in the database and plain ``str`` on the model's attribute.

    ``label`` is part of the key derivation and must stay what it was when the values were written: use
    ``table.column``. None stays NULL, and the empty string comes back as itself. A value that does not open comes back
    as :class:`Unreadable`.
    """

    impl = Text
    cache_ok = True

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def __repr__(self) -> str:
        return f"Encrypted({self.label!r})"

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        if isinstance(value, Unreadable):
            raise value.error
        if not isinstance(value, str):
            raise TypeError(f"{self.label} takes text")
        return get_keyring().seal(value, self.label)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return self.result_processor(dialect, None)(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """As the base class makes one, without its calls in between for each of many values."""
        label = self.label

        def read(stored: str | None) -> Any:
            if stored is None:
                return None
            try:
                return get_keyring().open(stored, label)
            except DecryptionError as error:
                return Unreadable(label, error.key_id, error.reason)

        return read

    def process_literal_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002
        raise TypeError(f"{self.label} is encrypted and cannot be written as a literal")

    def compare_values(self, x: Any, y: Any) -> bool:
        """Asked at a flush whether a value has changed; one that cannot be read can still be replaced."""
        if isinstance(x, Unreadable) or isinstance(y, Unreadable):
            return x is y
        return bool(x == y)

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


def render_item(type_: str, item: Any, _autogen: Any) -> str | bool:
    """For ``context.configure(render_item=...)`` in an application's ``env.py``: an encrypted column is plain text in
    a migration, which must run without any key and without the models of today."""
    return "sa.Text()" if type_ == "type" and isinstance(item, Encrypted) else False


@event.listens_for(Engine, "before_execute")
def _refuse_to_compare(_connection: Any, statement: Any, *_: Any) -> None:
    """What is no operation on the column cannot be refused by its comparator when the query is built: naming it in
    ORDER BY, and standing on the right of another's comparison."""
    for clauses in ("_order_by_clauses", "_group_by_clauses"):
        for clause in getattr(statement, clauses, ()):
            if any(_is_encrypted(part) for part in _parts(clause)):
                raise TypeError("an encrypted column cannot be compared or sorted")
    conditions = [*getattr(statement, "_where_criteria", ()), *getattr(statement, "_having_criteria", ())]
    conditions += [join[1] for join in getattr(statement, "_setup_joins", ())]
    for clause in conditions:
        for part in _parts(clause, _CONDITIONS):
            if (
                isinstance(part, BinaryExpression)
                and part.operator not in (is_, is_not)
                and (_is_encrypted(part.left) or _is_encrypted(part.right))
            ):
                raise TypeError("an encrypted column cannot be compared or sorted")


_CONDITIONS = (BooleanClauseList, BinaryExpression, UnaryExpression, Grouping)


def _parts(clause: Any, kinds: tuple[type[Any], ...] = (ClauseElement,)) -> Iterator[Any]:
    """A clause and what it is made of; ``type_coerce(column, Text)`` is a deliberate look at what is stored."""
    yield clause
    if isinstance(clause, kinds) and not isinstance(clause, TypeCoerce):
        for child in clause.get_children():
            yield from _parts(child, kinds)


def _is_encrypted(clause: Any) -> bool:
    return isinstance(getattr(clause, "type", None), Encrypted)
