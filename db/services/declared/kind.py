"""What a kind of thing needs, so that a document can say what there is of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel
from sqlalchemy.orm import Session

from db.errors import InvalidInput, OpsError
from db.fields import check, problems
from db.models import User

#: Where something stands in a document: ``("applications", "web", "command")``.
Path = tuple[str | int, ...]


class At(Exception):
    """An error of ours, and where in the document its cause stands."""

    def __init__(self, path: Path, error: OpsError) -> None:
        super().__init__(str(error))
        self.path = path
        self.error = error


@dataclass(frozen=True, slots=True)
class Found:
    """A thing that there is: its row, its name, and its values as a document has them."""

    row: Any
    name: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """The field that says which spec the values of another (``of``) follow. ``default``: what holds where it is left
    out. ``elsewhere``: by value, the fields that are said in another place too, or (True) only there."""

    by: str
    of: str
    specs: Mapping[str, type[BaseModel]]
    default: str | None = None
    elsewhere: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)


class Kind(ABC):
    """One kind of thing. Values are those of its spec but the name, without those that are as by default."""

    #: Its key in a document.
    key: ClassVar[str]
    noun: ClassVar[str]
    spec: ClassVar[type[BaseModel]]
    choices: ClassVar[tuple[Choice, ...]] = ()

    @abstractmethod
    def found(self, session: Session) -> Iterable[Found]:
        """All that there are."""

    @abstractmethod
    def create(self, session: Session, name: str, values: dict[str, Any], actor: User) -> None: ...

    @abstractmethod
    def change(self, session: Session, row: Any, name: str, values: dict[str, Any], actor: User) -> None: ...

    @abstractmethod
    def remove(self, session: Session, row: Any, actor: User) -> None: ...

    def wrong(self, name: str, values: Any) -> list[tuple[Path, str]]:
        """Where these are no values of its spec; places are below the thing's own."""
        if not isinstance(values, dict):
            return [((), f"an {self.noun} is its fields" if self.noun[0] in "aeio" else f"a {self.noun} is its fields")]
        if "name" in values:
            return [(("name",), "its name is the key above; it is not repeated")]
        try:
            return problems(self.spec, {"name": name} | values)
        except InvalidInput as error:  # of a validator that checks a part by another spec, and names the place
            place, colon, said = str(error).partition(": ")
            return [(tuple(place.split(".")), said)] if colon else [((), str(error))]

    def normal(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """The same values in fewest words. Raises InvalidInput."""
        dumped = check(self.spec, {"name": name} | values).model_dump(mode="json", exclude_defaults=True)
        dumped.pop("name")
        return dumped

    def stored(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a row in fewest words; as they are where today's rules would refuse them."""
        try:
            return self.normal(name, values)
        except InvalidInput:
            return {field: value for field, value in values.items() if value is not None}

    def refer(self, session: Session, values: dict[str, Any], actor: User) -> dict[str, Any]:  # noqa: ARG002 - as below
        """The wanted values with what they name looked up, to be compared with those found. Raises At, OpsError."""
        return values

    def compared(self, found: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What there is and what is wanted, as far as the document says anything of it."""
        return found, wanted

    def exported(self, found: Found) -> dict[str, Any]:
        """What is told of it in a document."""
        return found.values

    def whole(self, values: dict[str, Any]) -> dict[str, Any]:
        """All fields but the name: what a document leaves out is as by default."""
        fields = {name: field for name, field in self.spec.model_fields.items() if name != "name"}
        defaults = {
            name: field.get_default(call_default_factory=True, validated_data={})
            for name, field in fields.items()
            if not field.is_required()
        }
        plain = {
            name: default.model_dump(mode="json", exclude_defaults=True) if isinstance(default, BaseModel) else default
            for name, default in defaults.items()
        }
        return plain | values
