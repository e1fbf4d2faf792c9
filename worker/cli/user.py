"""`ops user`: accounts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from worker.cli import acting
from worker.cli.output import out

app = typer.Typer(help="Users: who acts, and what they may do.")

Name = Annotated[str, typer.Argument(help="The user's name.")]


@app.command(epilog="Example: ops user add alice alice@example.com --role operator")
def add(
    name: Name,
    email: Annotated[str, typer.Argument(help="Their address.")],
    role: Annotated[str, typer.Option(help="viewer, operator or admin.")] = "operator",
) -> None:
    """Register a user; a password is set by `ops user passwd`."""
    from db.services import users

    with acting.session(action="ops user add") as (session, actor):
        made = users.create(session, username=name, email=email, role=role, actor=actor)
        shown = {"id": made.id, "username": made.username, "email": made.email, "role": made.role}
    out.result(shown, f"user {name} is registered as {role}", f"next: ops user passwd {name}")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List users, newest first. Example: ops user list"""
    from db.repositories import UserRepository

    with acting.session(write=False) as (session, _):
        page = UserRepository(session).list_(limit=limit, before=before)
        items = [
            {
                "id": user.id, "username": user.username, "email": user.email, "role": user.role,
                "active": user.is_active, "last_login_at": user.last_login_at,
            }
            for user in page.items
        ]  # fmt: skip
    columns = ("id", "username", "email", "role", "active", "last login at")
    out.page("users", columns, items, str(page.next) if page.next else None)


@app.command()
def passwd(name: Name) -> None:
    """Set a user's password, from a prompt or stdin. Example: ops user passwd alice"""
    from db.repositories import UserRepository
    from db.services import users

    if sys.stdin.isatty():
        password: str = typer.prompt(f"password of {name}", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    with acting.session(action="ops user passwd") as (session, actor):
        found = UserRepository(session).require_by_username(name)
        users.set_password(session, user=found, password=password, actor=actor)
    out.result({"username": name}, f"the password of {name} is set")


@app.command()
def role(
    name: Name,
    role: Annotated[str, typer.Argument(help="viewer, operator or admin.")],
) -> None:
    """Make a user a viewer, an operator or an admin. Example: ops user role alice admin"""
    from db.repositories import UserRepository
    from db.services import users

    with acting.session(action="ops user role") as (session, actor):
        found = UserRepository(session).require_by_username(name)
        users.set_role(session, user=found, role=role, actor=actor)
    out.result({"username": name, "role": role}, f"user {name} is {role}")


@app.command()
def disable(name: Name, undo: Annotated[bool, typer.Option("--undo", help="Enable the user again.")] = False) -> None:
    """Disable a user: history stays, nothing more may be done. Example: ops user disable alice"""
    from db.repositories import UserRepository
    from db.services import users

    with acting.session(action="ops user disable") as (session, actor):
        found = UserRepository(session).require_by_username(name)
        users.set_active(session, user=found, active=undo, actor=actor)
    out.result({"username": name, "active": undo}, f"user {name} is {'enabled' if undo else 'disabled'}")
