"""`ops apply` and `ops export`: configuration as code."""

from __future__ import annotations

import json
import sys
from pathlib import Path as File
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import out, plain

if TYPE_CHECKING:
    from db.errors import OpsError
    from db.services.declared.document import Applied, Change, Wrong
    from worker.documents import Document, Path


def register(root: typer.Typer) -> None:
    """Add `ops apply` and `ops export` to the tree."""
    root.command(epilog="Example: ops apply -f ops.yaml --dry-run")(apply)
    root.command(epilog="Example: ops export > ops.yaml")(export)


def apply(
    file: Annotated[str | None, typer.Option("-f", "--file", help="The document; - reads it from a pipe.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what is not in it, of the kinds that are.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print what may stand in it, as JSON Schema.")] = False,
) -> None:
    """Make what there is what a document says, of all kinds that it has; all of it, or nothing."""
    from db.errors import InvalidInput
    from db.services.declared import document as declared
    from worker import documents

    if schema:
        from db.services.declared.schema import schema as written

        sys.stdout.write(json.dumps(written(), indent=2) + "\n")
        return
    if file is None:
        raise InvalidInput("no document is named", hint="ops apply -f ops.yaml, or ops apply --schema")
    given = documents.read(*_bytes(file))
    from db.services.declared.kind import At

    try:
        with acting.session(action="ops apply") as (session, user):
            done = declared.apply(session, document=given.values, actor=user, prune=prune, dry_run=dry_run)
    except declared.Wrong as error:
        raise _told(given, error) from None
    except At as error:
        raise _located(given, error.path, error.error) from None
    _show(done, dry_run=dry_run)


def export(
    kinds: Annotated[list[str] | None, typer.Argument(metavar="[KIND]...", help="Only these; all by default.")] = None,
) -> None:
    """Print what there is as a document for `ops apply`; secrets are not in it."""
    from db.errors import InvalidInput
    from db.services.declared import document as declared
    from worker import documents

    known = [kind.key for kind in declared.KINDS]
    if unknown := [kind for kind in kinds or () if kind not in known]:
        raise InvalidInput(f"{unknown[0][:60]!r} is no kind; known are: {', '.join(known)}")
    with acting.session(write=False) as (session, _):
        found = declared.export(session)
    wanted = {key: things for key, things in found.items() if not kinds or key in kinds}
    if out.json:
        out.record(wanted)
    else:
        sys.stdout.write(documents.write(plain(wanted)))


def _bytes(file: str) -> tuple[bytes, str]:
    """What stands in the file, and its name. Raises InvalidInput."""
    from db.errors import InvalidInput
    from worker.documents import MOST_BYTES

    try:
        if file == "-":
            return sys.stdin.buffer.read(MOST_BYTES + 1), "-"
        with File(file).open("rb") as opened:
            return opened.read(MOST_BYTES + 1), file
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file[:200]}: {getattr(error, 'strerror', None) or error}") from None


def _told(given: Document, error: Wrong) -> OpsError:
    """The first mistake as the error; the others as remarks before it."""
    from db.errors import InvalidInput

    # In the order of the lines: mistakes about the whole of a thing come before those within it.
    exact = [_exact(given, path, said) for path, said in error.problems]
    first, *more = sorted((given.line(path), f"{given.place(path)}: {said}") for path, said in exact)
    for _, line in more:
        out.note(line)
    return InvalidInput(first[1] + (f" (and {len(more)} more)" if more else ""), hint="ops apply --schema")


def _located(given: Document, path: Path, error: OpsError) -> OpsError:
    """The same error, with where its cause stands."""
    exact, said = _exact(given, path, str(error))
    named = path[:2] in given.lines
    where = given.place(exact) if named else f"{given.source}: {'.'.join(map(str, path))}"
    error.args = (f"{where}: {said}",)
    return error


def _exact(given: Document, path: Path, said: str) -> tuple[Path, str]:
    """Where a message begins with the name of a part that the document has, it is of that part."""
    place, colon, rest = said.partition(": ")
    inner = (*path, *place.split("."))
    return (inner, rest) if colon and inner in given.lines else (path, said)


def _show(done: Applied, *, dry_run: bool) -> None:
    counts = {action: sum(each.action == action for each in done.changes) for action in ("create", "change", "remove")}
    if out.json:
        changes = [
            {"kind": each.kind, "name": each.name, "action": each.action, "fields": each.fields}
            for each in done.changes
        ]
        out.record({"dry_run": dry_run, "changes": changes, "unchanged": done.unchanged})
        return
    for change in done.changes:
        _show_change(change)
    words = {"create": "created", "change": "changed", "remove": "removed"}
    told = [f"{count} {'to ' + action if dry_run else words[action]}" for action, count in counts.items() if count]
    if dry_run and told:
        told.append("nothing was changed")
    out.line(", ".join([*told, f"{done.unchanged} as they are"]) if told else "no changes")


def _show_change(change: Change) -> None:
    sign, style = {"create": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "red")}[change.action]
    out.line(f"{sign} {change.kind} {change.name}", style=style)
    for place, (old, new) in change.fields.items():
        out.line(f"    {place}: {_value(new) if change.action == 'create' else f'{_value(old)} -> {_value(new)}'}")


def _value(value: Any) -> str:
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    text = text.replace("\n", "\\n")
    return text if len(text) <= 200 else f"{text[:200]}..."
