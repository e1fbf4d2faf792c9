"""What every table shares: schema, naming convention, column types."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Identity, MetaData, Text, func, inspect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column
from sqlalchemy.types import TypeDecorator

from db.encryption import Encrypted
from db.errors import InvalidInput
from db.settings import get_settings
from db.states import (
    ActorType,
    AlertEventKind,
    AlertStatus,
    CatchUp,
    ChannelKind,
    CheckKind,
    CheckState,
    CheckStatus,
    DeploymentStatus,
    Environment,
    HostStatus,
    JobState,
    NotificationState,
    Outcome,
    Overlap,
    Role,
    RunOutcome,
    ScheduleKind,
    Severity,
    Transition,
)

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

#: A generated bigint key.
Key = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
#: A point in time, aware, UTC.
Timestamp = Annotated[datetime, mapped_column(DateTime(timezone=True))]
#: The time of the insert, by the database's clock.
CreatedAt = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.now())]
#: The time of the last update through the ORM.
UpdatedAt = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.now(), onupdate=func.now())]
#: A bigint reference; name the target in `mapped_column(ForeignKey(...))`.
BigInt = Annotated[int, mapped_column(BigInteger)]
#: Any JSON object.
JsonObject = Annotated[dict[str, Any], mapped_column(JSONB, server_default="{}")]


def one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """A CHECK that a text column holds one of an enum's values."""
    values = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({values})", name=column)


class Word(TypeDecorator[StrEnum]):
    """An enum's member on the attribute, its value as text in the table."""

    impl = Text
    cache_ok = True

    def __init__(self, words: type[StrEnum]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: StrEnum | str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        try:
            return self.words(value).value
        except ValueError:
            known = ", ".join(word.value for word in self.words)
            raise InvalidInput(f"{value!r} is none of: {known}") from None

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:  # noqa: ARG002
        return None if value is None else self.words(value)


#: Every enum that a column may hold.
WORDS: tuple[type[StrEnum], ...] = (
    ActorType,
    AlertEventKind,
    AlertStatus,
    CheckKind,
    CheckState,
    CheckStatus,
    CatchUp,
    ChannelKind,
    DeploymentStatus,
    Environment,
    HostStatus,
    JobState,
    NotificationState,
    Outcome,
    Overlap,
    Role,
    RunOutcome,
    ScheduleKind,
    Severity,
    Transition,
)


class Base(DeclarativeBase):
    """All tables live in one schema, named in every statement, whatever the search path of a connection is."""

    metadata = MetaData(schema=get_settings().database_schema, naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text} | {words: Word(words) for words in WORDS}

    def __repr__(self) -> str:
        state = inspect(self)
        shown = []
        for column in state.mapper.columns:
            if column.key in state.unloaded:
                continue
            value = state.dict.get(column.key)
            secret = isinstance(column.type, Encrypted) or column.key in _never_shown
            shown.append(f"{column.key}={'***' if secret and value is not None else _short(value)}")
        return f"<{type(self).__name__} {' '.join(shown)}>"


_never_shown = frozenset({"hashed_password"})


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Versioned:
    """Optimistic locking for what people edit: an UPDATE of a stale row changes nothing and raises Conflict."""

    version_id: Mapped[int] = mapped_column(BigInteger, server_default="1")

    @declared_attr.directive
    @classmethod
    def __mapper_args__(cls) -> dict[str, Any]:
        return {"version_id_col": cls.version_id}
