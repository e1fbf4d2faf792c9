"""What may stand in a document, as JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from db.fields import Name
from db.services.declared.document import KINDS
from db.services.declared.kind import Choice


def schema() -> dict[str, Any]:
    """What may stand in a document, as JSON Schema (2020-12)."""
    definitions: dict[str, Any] = {}
    properties = {}
    for kind in KINDS:
        made = _define(kind.spec, definitions)
        made["properties"].pop("name")
        made["required"] = [each for each in made.get("required", ()) if each != "name"]
        if rules := [rule for choice in kind.choices for rule in _rules(choice, definitions)]:
            made["allOf"] = rules
        properties[kind.key] = {
            "type": "object",
            "propertyNames": TypeAdapter(Name).json_schema(),
            "additionalProperties": {"$ref": f"#/$defs/{kind.spec.__name__}"},
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ops.yaml",
        "description": "What there is to be, by name. Secrets are named, never written: SERVICE/NAME.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "$defs": dict(sorted(definitions.items())),
    }


def _define(spec: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Put a spec and what it is made of among the definitions; answers its own."""
    made: dict[str, Any] = spec.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= made.pop("$defs", {})
    definitions[spec.__name__] = made
    return made


def _rules(choice: Choice, definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For each value of the field that says it: which spec the other field follows."""
    for value, spec in choice.specs.items():
        made = _define(spec, definitions)
        for field, only in choice.elsewhere.get(value, {}).items():
            made["required"] = [each for each in made.get("required", ()) if each != field]
            if only:
                made["properties"].pop(field, None)
        then: dict[str, Any] = {"properties": {choice.of: {"$ref": f"#/$defs/{spec.__name__}"}}}
        if made.get("required") and not choice.elsewhere:
            then["required"] = [choice.of]
        asked: dict[str, Any] = {"properties": {choice.by: {"const": value}}}
        if value != choice.default:
            asked["required"] = [choice.by]
        yield {"if": asked, "then": then}
