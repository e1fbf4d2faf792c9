"""docs/reference, written from the code: `make reference`. With --check it writes nothing and says which page is stale.

Settings come from .env.example and db/settings.py, commands from the tree that `ops` runs, checks from db/probes.py,
tables from the models and from what migrations put under audit, metrics from what `ops serve` collects. No server is
needed.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make reference` from the code: change it there. -->"


def main() -> int:
    for name in list(os.environ):  # the pages are the same whoever makes them
        if name.startswith(("OPS_", "DATABASE_", "ENCRYPTION_")):
            del os.environ[name]
    os.environ["DATABASE_URL"] = "postgresql://nobody@127.0.0.1/nothing"  # named, and never connected to
    os.environ["OPS_DATA_DIR"] = str(ROOT / ".ci")  # no settings of a developer's own stack
    os.chdir(ROOT / ".ci")
    sys.path.insert(0, str(ROOT))
    made = {
        "settings": settings(), "commands": commands(), "checks": checks(), "tables": tables(), "metrics": metrics(),
    }  # fmt: skip
    stale = []
    for name, lines in made.items():
        page, text = PAGES / f"{name}.md", "\n".join([NOTE, *lines, ""])
        if not page.is_file() or page.read_text("utf-8") != text:
            stale.append(f"docs/reference/{name}.md")
            if "--check" not in sys.argv:
                PAGES.mkdir(exist_ok=True)
                page.write_text(text, "utf-8")
    if "--check" in sys.argv and stale:
        print(f"{', '.join(stale)}: not what the code says; run: make reference")
        return 1
    print(f"written: {', '.join(stale)}" if stale else "docs/reference is what the code says")
    return 0


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def head(*names: str) -> list[str]:
    return [row(*names), "|" + "---|" * len(names)]


# Settings ------------------------------------------------------------------------------------------------------------


def settings() -> Iterator[str]:
    """Each variable of .env.example; a comment holds for all variables up to the next one."""
    from db.settings import SECRETS, Settings, _choices

    known = {_choices(field)[0]: field for field in Settings.model_fields.values()}
    text = (ROOT / ".env.example").read_text("utf-8")
    yield "# Settings"
    yield ""
    yield (
        "From the environment, else from `.env` in the current folder, else from the data folder of `ops up`. Secret "
        "ones may be given as a file: `NAME_FILE=/run/secrets/name`. `make env` writes a `.env` with fresh secrets."
    )
    yield ""
    yield from head("variable", "default", "secret", "what")
    seen: set[str] = set()
    comment, fresh = "", True
    for line in text.splitlines()[4:]:
        if found := re.match(r"#?([A-Z_0-9]+)=(.*)$", line):
            name, example = found.groups()
            field = known.get(name)
            default = example if field is None or field.default is None else str(field.default)
            default = default.lower() if default in ("True", "False") else default
            what = (comment if fresh else "as above") + (bounds(field) if field is not None else "")
            yield row(f"`{name}`", f"`{default}`" if default else "", "yes" if name in SECRETS else "", what)
            seen.add(name)
            fresh = False
        elif line.startswith("#"):
            comment = " ".join([*(comment if fresh else "").split(), *line[1:].split()])
            fresh = True
        elif not line:
            comment, fresh = "", True
    if missing := set(known) - seen:
        raise SystemExit(f".env.example lacks {', '.join(sorted(missing))}; add it with a comment")


def bounds(field: Any) -> str:
    least = next((each.ge for each in field.metadata if hasattr(each, "ge")), None)
    most = next((each.le for each in field.metadata if hasattr(each, "le")), None)
    return f" ({least} to {most})" if least is not None and most is not None else ""


# Commands ------------------------------------------------------------------------------------------------------------


def tree() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of the help; groups come before what is in them."""
    import typer

    from worker.cli.root import app

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for word, each in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {word}", each)

    yield from walk("ops", typer.main.get_command(app))


def said(command: Any) -> tuple[str, list[str]]:
    """What a command's help says, in one line, and its examples."""
    paragraphs = re.split(r"\n\s*\n", f"{command.help or ''}\n\n{command.epilog or ''}")
    text, *examples = re.split(r"\bExample: ", "\n".join(" ".join(each.split()) for each in paragraphs))
    return " ".join(text.split()), [line.strip() for each in examples for line in each.splitlines() if line.strip()]


def commands() -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield (
        "Every command takes `--json` and `--help`. Exit codes: 0 ok, 1 the work failed, 2 usage, 3 platform error or "
        "unknown, 4 cancelled, 5 refused, 6 not found, 124 waiting timed out."
    )
    for name, command in tree():
        if name == "ops" or command.hidden:
            continue
        text, examples = said(command)
        is_group = hasattr(command, "commands")
        yield from ("", f"## {name}" if is_group or name.count(" ") == 1 else f"### {name}", "", text)
        if is_group:
            continue
        yield from ("", *(f"    {example}" for example in examples))
        context = command.context_class(command, info_name=name)
        records = [each.get_help_record(context) for each in command.params if each.name not in ("help", "json")]
        if shown := [record for record in records if record]:
            yield from ("", *head("", "what"))
            yield from (row(f"`{left.replace(' range>', '>')}`", " ".join(right.split())) for left, right in shown)


# Checks --------------------------------------------------------------------------------------------------------------


def checks() -> Iterator[str]:
    """What `--set` takes, a table for each kind."""
    from db.probes import KINDS

    yield from ("# What each kind of check takes", "")
    yield (
        "By `ops check add NAME KIND TARGET --set FIELD=TEXT` or `--set FIELD:=JSON`, or as `config` in `ops.yaml`. "
        "What has no default and is not needed is not looked at."
    )
    for kind, model in KINDS.items():
        schema = model.model_json_schema()
        yield from ("", f"## {kind.value}", "", plain(inspect.getdoc(model) or ""), "", *head("", "takes", "default"))
        for name, field in schema["properties"].items():
            default = json.dumps(field.get("default"))
            shown = "" if default in ("null", "{}", "[]") else f"`{default}`"
            yield row(f"`{name}`", takes(field), "needed" if name in schema.get("required", ()) else shown)


def takes(field: dict[str, Any]) -> str:
    """What a JSON schema's field takes, in a few words."""
    from db.fields import SERVICE_AND_KEY

    if "anyOf" in field:
        return " or ".join(takes(each) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return " ".join(f"`{word}`" for word in field["enum"])
    if "$ref" in field:
        return '`{"user": ..., "secret": SERVICE/NAME}`'
    if field["type"] == "object":  # of names that follow a pattern, and what they stand for
        return f"object: {' or '.join(takes(each) for each in field['patternProperties'].values())} by name"
    if "items" in field:
        return f"list of {takes(field['items'])}"
    if field.get("pattern") == SERVICE_AND_KEY:
        return "a secret's name"
    text = {"string": "text", "integer": "whole number", "boolean": "`true` or `false`"}.get(field["type"], "number")
    if "exclusiveMinimum" in field:
        return f"{text} (above {field['exclusiveMinimum']:g}, to {field['maximum']:g})"
    return f"{text} ({field['minimum']} to {field['maximum']})" if "minimum" in field else text


# Tables --------------------------------------------------------------------------------------------------------------


def watched() -> dict[str, tuple[str, str, str]]:
    """Per table: hidden columns, columns that are not recorded, and what its entries are called."""
    call = re.compile(r"SELECT ops_audit_watch\(\s*'(\w+)',\s*'\{(.*?)\}',\s*'\{(.*?)\}',\s*'(\w+)'", re.DOTALL)
    paths = sorted((ROOT / "migrations" / "versions").glob("*.sql"))
    texts = (path.read_text("utf-8") for path in paths if not path.stem.endswith("downgrade"))
    return {found[0]: (found[1], found[2], found[3]) for text in texts for found in call.findall(text)}


def remarks(model: type) -> dict[str, str]:
    """The comment above a column."""
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in map(str.strip, inspect.getsource(model).splitlines()):
        if line.startswith("#"):
            comment.append(line.lstrip("#: "))
            continue
        if column := re.match(r"(\w+): Mapped\[", line):
            found[column[1]] = " ".join(comment)
        comment = []
    return found


def plain(text: str) -> str:
    """A docstring as Markdown, on one line."""
    return " ".join(re.sub(r":\w+:`(.*?)`", r"`\1`", text).replace("``", "`").split())


def tables() -> Iterator[str]:
    from db.models import Base

    audit = watched()
    models = {mapper.local_table.name: mapper.class_ for mapper in Base.registry.mappers}
    yield from ("# Tables", "")
    yield (
        "In the schema of `OPS_DATABASE_SCHEMA`. Every change of a table under audit is an entry of `audit_logs`; "
        "a hidden column's values are not in it, and a change of nothing but columns that are not recorded makes none. "
        "Jobs leave an entry for each transition, by the functions that make it."
    )
    for name, model in sorted(models.items()):
        table, notes = model.__table__, remarks(model)
        yield from ("", f"## {name}", "", plain(inspect.getdoc(model) or ""), "")
        if name in audit:
            hidden, ignored, word = audit[name]
            more = f"; hidden: {hidden.replace(',', ', ')}" if hidden else ""
            more += f"; not recorded: {ignored.replace(',', ', ')}" if ignored else ""
            yield f"Under audit as `{word}`{more}."
        else:
            yield "Not under audit." if name != "jobs" else "Each transition is under audit as `job`."
        if partition := table.dialect_options["postgresql"].get("partition_by"):
            yield f"Partitioned by {partition}."
        yield from ("", *head("column", "type", "null", "what"))
        yield from (column_row(column, notes.get(column.key, "")) for column in table.columns)


def column_row(column: Any, note: str) -> str:
    from sqlalchemy.dialects import postgresql

    what = ["key" if column.primary_key else ""]
    what += [f"of `{key.column.table.name}.{key.column.name}`" for key in column.foreign_keys]
    if words := getattr(column.type, "words", None):
        what.append(" ".join(f"`{word.value}`" for word in words))
    if column.server_default is not None and hasattr(column.server_default, "arg"):
        what.append(f"default `{getattr(column.server_default.arg, 'text', column.server_default.arg)}`")
    kind = column.type.compile(dialect=postgresql.dialect()).lower().replace("timestamp with time zone", "timestamptz")
    return row(
        f"`{column.name}`",
        kind,
        "yes" if column.nullable else "",
        "; ".join(each for each in [*what, plain(note)] if each),
    )


# Metrics -------------------------------------------------------------------------------------------------------------


def metrics() -> Iterator[str]:
    """What `ops serve` collects from an empty snapshot: names, types, labels and help are those of the code."""
    from db.repositories.metrics import Trail
    from db.services.metrics import SealLag, Snapshot
    from worker.serve.metrics import Collector

    given: dict[str, Any] = dict.fromkeys(Snapshot.__dataclass_fields__, ())
    given |= {"at": datetime.now(UTC), "paused": False, "trail": Trail(0, 0, 0), "seals": SealLag(0, 0.0)}
    given |= {"connection_limit": 0, "database_bytes": 0}
    yield from ("# Metrics", "")
    yield (
        "Of `/metrics` of `ops serve`; who may read them, and how they are counted: [../serve.md](../serve.md). Ages "
        "and durations are in seconds. The rules that watch them: [../alerts.md](../alerts.md)."
    )
    yield from ("", *head("metric", "type", "labels", "what"))
    for family in Collector(Snapshot(**given), 0.0).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield row(f"`{name}`", family.type, ", ".join(family._labelnames), family.documentation)


if __name__ == "__main__":
    sys.exit(main())
