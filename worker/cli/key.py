"""`ops encryption-key`: the keys that secrets are sealed with, and how to change them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import out

if TYPE_CHECKING:
    from db.repositories import EncryptedTable
    from db.services.keys import Holder, Rotation, Step

app = typer.Typer(help="Encryption keys: list them, and change them without downtime (add, promote, rotate, retire).")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="A key's id; `ops encryption-key list` shows them.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="MODULE:NAME", help="Also an application's own tables: app.models:Base."),
]
Write = Annotated[
    bool | None, typer.Option("--write/--no-write", help="Change the settings file that the keys come from.")
]
AGAIN = "then start every process anew"


@app.command()
def new() -> None:
    """Print a fresh key for ENCRYPTION_KEY; it is stored nowhere. Example: ops encryption-key new"""
    from db.encryption import new_key

    key = new_key()
    out.result({"key": key}, key)


@app.command("list")
def list_() -> None:
    """List the keys of this process and of the database, and who holds them. Example: ops encryption-key list"""
    from db.keyring import get_keyring
    from db.repositories import EncryptionKeyRepository
    from db.services import keys

    keyring = get_keyring()
    with acting.session(write=False) as (session, _):
        known = {row.id: row for row in EncryptionKeyRepository(session).list_()}
        living = keys.holders(session)
    items = []
    for key_id in [*keyring.ids, *(key_id for key_id in known if key_id not in keyring.ids)]:
        held, row = keyring.get(key_id), known.get(key_id)
        items.append(
            {
                "id": key_id,
                "seals": held is not None and held is keyring.primary,
                "from": held.source if held else "not held here",
                "workers": f"{sum(key_id in (each.keys or ()) for each in living)} of {len(living)}",
                "known_since": row.created_at if row else None,
                "retired_at": row.retired_at if row else None,
            }
        )
    out.page("encryption keys", ("id", "seals", "from", "workers", "known since", "retired at"), items, None)


@app.command()
def usage(metadata: Metadata = None) -> None:
    """Count the rows that each key is needed for; reads each table once. Example: ops encryption-key usage"""
    from db.services import keys

    tables = _tables(metadata)
    with acting.session(write=False) as (session, _):
        found = keys.usage(session, tables)
    items = [
        {"key": key_id or "(not encrypted)", "table": table, "column": column, "rows": rows}
        for (table, column), counts in found.items()
        for key_id, rows in sorted(counts.items(), key=str)
    ]
    out.page("encrypted values", ("key", "table", "column", "rows"), items, None)


@app.command()
def check(metadata: Metadata = None) -> int:
    """Open every value and list those that do not open. Example: ops encryption-key check"""
    from db.services import keys

    tables = _tables(metadata)
    with acting.session(write=False) as (session, _):
        keys.require_here(session, tables)
    rows, _, unopened = _follow(keys.check(tables), "opening", None)
    out.result({"rows": rows, "unopened": unopened}, f"rows: {rows}; values that do not open: {len(unopened)}")
    return 1 if unopened else 0


@app.command(epilog="Example: ops encryption-key add --id 2027")
def add(
    key_id: Annotated[str | None, typer.Option("--id", help="What to call it; by default a part of a hash.")] = None,
    password: Annotated[bool, typer.Option("--password", help="Derive it from a password (prompt or stdin).")] = False,
    write: Write = None,
) -> None:
    """Make a key that opens and does not seal yet: step 1 of 3, for every process."""
    from db.encryption import MasterKey, get_keyring, new_key
    from db.errors import AlreadyExists, InvalidInput, Refused
    from db.keyring import is_key_id
    from db.repositories import EncryptionKeyRepository
    from worker.cli import keychange

    if key_id is not None and not is_key_id(key_id):
        raise InvalidInput("a key's id is up to 32 letters, digits, _ and -, for example 2027")
    keyring = get_keyring()
    with acting.session(write=False) as (session, actor):
        _require_admin(actor)
        known = {row.id for row in EncryptionKeyRepository(session).list_()}
    if key_id in known or key_id in keyring.ids:
        raise AlreadyExists(f"there is or was an encryption key {key_id}; ids are not used again")
    if keyring.primary is None:
        raise Refused("there is no encryption key yet; the first one is ENCRYPTION_KEY", hint="ops encryption-key new")
    fresh = new_key()
    key_id = key_id or MasterKey(keychange.key_bytes(fresh)).id
    entry = _password_entry(key_id) if password else f"{key_id}:{fresh}"
    change = keychange.add(entry, seals_now=keyring.primary)
    path = keychange.offer(change, write)
    lines = [f"written to {path}"] if path else [f"set, for every process: {line}" for line in change.lines]
    out.result(
        {"id": key_id, "written": path, "set": None if path else change.lines},
        f"key {key_id} opens what it has sealed, and seals nothing yet",
        *lines,
        f"{AGAIN}, then: ops encryption-key promote {key_id}",
    )


@app.command(epilog="Example: ops encryption-key promote 2027")
def promote(
    key_id: KeyId,
    force: Annotated[
        bool, typer.Option("--force", help="Although a worker does not hold it; says what fails.")
    ] = False,
    write: Write = None,
) -> None:
    """Let another key seal what is written from now on: step 2 of 3, once every worker holds it."""
    from db.services import keys
    from worker.cli import keychange

    with acting.session(action="ops encryption-key promote") as (session, actor):
        found = keys.promote(session, key_id=key_id, force=force, actor=actor)
    shown: dict[str, Any] = {"id": key_id, "instead_of": found.was, "workers": found.asked}
    shown["without_it"] = [holder.name for holder in found.lacking]
    if found.was == key_id:
        out.result({**shown, "written": None, "set": None}, f"key {key_id} seals already: ops encryption-key rotate")
        return
    _warn(found.lacking, key_id)
    change = keychange.promote(key_id)
    path = keychange.offer(change, write)
    out.result(
        {**shown, "written": path, "set": None if path else change.lines},
        f"all {found.asked} living workers hold the key {key_id}" if found.asked else "no worker runs that could tell",
        *([f"written to {path}"] if path else [f"set, for every process: {line}" for line in change.lines]),
        f"{AGAIN}, once what does not report here, such as a web application, holds the key, too",
        "then: ops encryption-key rotate",
    )


@app.command(epilog="Example: ops encryption-key rotate --metadata shop.models:Base")
def rotate(
    metadata: Metadata = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open what would be sealed anew, change nothing.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=5000, help="Rows per transaction.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Although a worker does not hold the key.")] = False,
) -> int:
    """Seal everything with the key that seals now: step 3 of 3. May be killed, repeated, and run twice at once."""
    from db.services import keys

    rotation = keys.Rotation(_tables(metadata), dry_run=dry_run, batch=batch)
    action = "ops encryption-key rotate"
    with acting.session(action=action) as (session, actor):
        late = rotation.prepare(session, force=force, actor=actor)
        total = rotation.left(session)
        rotation.context.update(actor=actor.username, actor_id=actor.id, actor_type="user", action=action)
    for holder in late:
        out.note(f"{holder.name} seals with {holder.primary or 'no key'} still; what it writes needs another rotation")
    return _rotate(rotation, total)


@app.command(epilog="Example: ops encryption-key retire 2026")
def retire(key_id: KeyId, metadata: Metadata = None, write: Write = None) -> None:
    """Let go of a key that no row needs any more, and say which variable to remove. It cannot be undone."""
    from db.encryption import get_keyring
    from db.services import keys
    from worker.cli import keychange

    tables = _tables(metadata)
    with acting.session(action="ops encryption-key retire") as (session, actor):
        keys.retire(session, key_id=key_id, tables=tables, actor=actor)
    held = get_keyring().get(key_id)
    change = keychange.retire(held) if held else None
    path = keychange.offer(change, write) if change else None
    lines = ["this process does not hold it"] if change is None else change.lines
    out.result(
        {"id": key_id, "written": path, "set": None if path or change is None else change.lines},
        f"key {key_id} is retired: no row of {', '.join(table.name for table in tables)} needs it",
        *([f"written to {path}"] if path else lines),
        "keep it, apart from the data, for as long as you keep backups that were sealed with it",
    )


@app.callback()
def encryption_keys() -> None:
    """Encryption keys."""


def _rotate(rotation: Rotation, total: int) -> int:
    """Run it under a progress bar; answers the exit code."""
    moved, held, unopened = _follow(rotation.run(), "sealing anew", total)
    lines = [f"rows that {'would be' if rotation.dry_run else 'are'} sealed anew: {moved}"]
    if unopened:
        lines.append(f"values that do not open, and stay as they are: {len(unopened)}")
    if held:
        lines.append(f"rows that others hold: {held}; run it again")
    out.result({"rows": moved, "dry_run": rotation.dry_run, "unopened": unopened, "held": held}, *lines)
    return 1 if unopened or held else 0


def _follow(steps: Iterator[Step], title: str, total: int | None) -> tuple[int, int, list[dict[str, Any]]]:
    """A bar as it goes on, and a line for each value that does not open; answers rows, rows held, and these values."""
    from rich.progress import Progress

    rows, held, unopened = 0, 0, []
    with Progress(console=out.console, disable=not out.is_terminal, transient=True) as progress:
        bar = progress.add_task(title, total=total)
        for step in steps:
            rows, held = rows + step.rows, held + step.held
            progress.update(bar, advance=step.rows)
            for each in step.unopened:
                unopened.append({**vars(each)})
                key = each.key_id or "(none named)"
                out.line(f"{each.table}.{each.column} of {each.id} does not open with key {key}: {each.reason}", "red")
    return rows, held, unopened


def _tables(metadata: list[str] | None) -> list[EncryptedTable]:
    from db.models import Base
    from db.repositories import encrypted_tables
    from worker.cli import keychange

    return encrypted_tables([Base.metadata, *(keychange.load_metadata(each) for each in metadata or ())])


def _require_admin(actor: Any) -> None:
    from db.services import rights
    from db.states import Role

    rights.require(actor, Role.ADMIN, "adding an encryption key")


def _warn(lacking: list[Holder], key_id: str) -> None:
    for holder in lacking:
        out.note(f"{holder.name} does not hold the key {key_id}: its jobs fail to open what is sealed from now on")


def _password_entry(key_id: str) -> str:
    import secrets

    from db.errors import InvalidInput
    from db.keyring import password_entry
    from db.settings import get_settings

    if sys.stdin.isatty():
        password: str = typer.prompt("password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if len(password) < 12:
        raise InvalidInput("a password of fewer than 12 characters is guessed; take a longer one, or no --password")
    return password_entry(key_id, password, secrets.token_bytes(16), get_settings().pbkdf2_iterations)
