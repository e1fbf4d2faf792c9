"""`ops secret`: what commands need and nobody shall read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli import acting
from worker.cli.output import out

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.models import User

app = typer.Typer(help="Secrets: stored encrypted, opened only for the deployment that needs them.")

Name = Annotated[str, typer.Argument(metavar="SERVICE/NAME", help="For example aws/access_key.")]
Owner = Annotated[str | None, typer.Option("--user", help="Whose secret; yours by default.")]


@app.command("set", epilog='Example: printf %s "$TOKEN" | ops secret set github/token')
def set_(name: Name, user: Owner = None) -> None:
    """Store or replace a secret. Its value comes from a prompt or from stdin, never from the command line."""
    from db.services import secrets

    service, key = secrets.split(name)
    value = _read_value(name)
    with acting.session(action="ops secret set") as (session, actor):
        owner = _owner(session, actor, user)
        secrets.store(session, user_id=owner.id, service_name=service, key_name=key, value=value, actor=actor)
        shown = {"name": name, "user": owner.username}
    out.result(shown, f"secret {name} is stored", f"next: ops app edit APP --secret VARIABLE={name}")


@app.command("list")
def list_(user: Owner = None) -> None:
    """List secrets by name; their values are never shown. Example: ops secret list"""
    from db.services import secrets

    with acting.session(write=False) as (session, actor):
        owner = _owner(session, actor, user)
        keys = secrets.list_(session, user_id=owner.id, actor=actor)
        items = [
            {"name": key.name, "user": owner.username, "created_at": key.created_at, "updated_at": key.updated_at}
            for key in keys
        ]
    out.page("secrets", ("name", "user", "created at", "updated at"), items, None)


@app.command()
def rm(name: Name, user: Owner = None) -> None:
    """Remove a secret. Example: ops secret rm github/token"""
    from db.services import secrets

    with acting.session(action="ops secret rm") as (session, actor):
        owner = _owner(session, actor, user)
        secrets.remove(session, user_id=owner.id, name=name, actor=actor)
    out.result({"removed": name}, f"secret {name} is removed")


def _owner(session: Session, actor: User, name: str | None) -> User:
    from db.repositories import UserRepository

    return actor if name is None else UserRepository(session).require_by_username(name)


def _read_value(name: str) -> str:
    """From a prompt without echo, else all of stdin but its last line end. Raises InvalidInput when empty."""
    from db.errors import InvalidInput

    if sys.stdin.isatty():
        value: str = typer.prompt(f"value of {name}", hide_input=True)
    else:
        data = sys.stdin.buffer.read(1_000_000)
        try:
            value = data.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidInput("a secret is UTF-8 text; encode binary ones, for example with base64") from None
        value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise InvalidInput(f"no value came for {name}; type it at the prompt, or pipe it in")
    return value
