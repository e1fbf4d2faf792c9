"""`ops db`: tables and migrations."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from worker.cli.output import out

app = typer.Typer(help="The database: tables and migrations.")


@app.command()
def init(
    sample: Annotated[bool, typer.Option("--sample", help="Also user admin, application 1, infrastructure 1.")] = False,
) -> None:
    """Make the tables and the first admin (you). Example: ops db init --sample"""
    from db import migrate
    from db.services import sample as samples
    from worker.cli import acting

    migrate.upgrade()
    made = samples.first_admin(acting.user_name())
    if sample:
        samples.add_samples()
    out.result(
        {"admin": made, "sample": sample},
        f"the tables are ready; {made} is an admin",
        "next: ops app add NAME -- COMMAND, ops infra add NAME, ops deploy NAME VERSION --to NAME",
    )


@app.command()
def upgrade(revision: Annotated[str, typer.Argument(help="Up to which migration.")] = "head") -> None:
    """Apply migrations. Example: ops db upgrade"""
    from db import migrate
    from db.preflight import head_revision

    migrate.upgrade(revision)
    out.result({"revision": head_revision() if revision == "head" else revision}, "the database is up to date")


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="Down to which migration; -1: one step; base: everything.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Undo migrations; data in what they made is lost. Example: ops db downgrade -- -1"""
    from db import migrate

    if not yes:
        typer.confirm(f"Undo migrations down to {revision}? Data is lost.", abort=True)
    migrate.downgrade(revision)
    now = next((each.revision for each in migrate.history() if each.applied), "base")
    out.result({"revision": now}, f"the database is at {now}")


@app.command()
def history() -> None:
    """Show the migrations, newest first, and which of them the database has. Example: ops db history"""
    from db import migrate

    found = [asdict(each) for each in migrate.history()]
    out.page("migrations", ("revision", "after", "applied", "message"), found, None)


@app.command()
def revision(
    message: Annotated[str, typer.Option("-m", "--message", help="What it does, in a few words.")],
    empty: Annotated[bool, typer.Option("--empty", help="Do not compare models and database.")] = False,
) -> None:
    """Write a new migration. Example: ops db revision -m "add a column to users" """
    from db import migrate

    path = migrate.make_revision(message, autogenerate=not empty)
    out.result({"path": path}, f"written: {path}", "next: read it, then ops db upgrade")


@app.command()
def check() -> None:
    """Say whether models and database agree. Example: ops db check"""
    from db import migrate
    from db.errors import Conflict

    found = migrate.drift()
    if found is not None:
        raise Conflict(found, hint="ops db upgrade, or ops db revision -m ...")
    out.result({"drift": None}, "models and database agree")


@app.command()
def sql(revision: Annotated[str, typer.Argument(help="Up to which migration.")] = "head") -> None:
    """Print the statements of an upgrade instead of running them. Example: ops db sql"""
    from db import migrate

    statements = migrate.offline_sql(revision)
    out.result({"sql": statements}, statements)


@app.command()
def roles(
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements for an administrator instead.")] = False,
    passwords: Annotated[
        bool, typer.Option("--passwords", help="Give each new role a random password; printed once, as URLs.")
    ] = False,
    url_passwords: Annotated[
        bool,
        typer.Option(
            "--url-passwords", help="Give the roles the passwords of DATABASE_URL and OPS_DATABASE_OWNER_URL."
        ),
    ] = False,
) -> None:
    """Make the roles ops_owner, ops_app and ops_read with no more rights than each needs.

    Runs as the role of OPS_DATABASE_ADMIN_URL, else OPS_DATABASE_OWNER_URL, which must be allowed to make roles.
    Example: ops db roles --passwords
    """
    from db import roles as database_roles

    if sql:
        script = database_roles.script()
        out.result({"sql": script}, script)
        return
    made = database_roles.make(passwords=passwords, url_passwords=url_passwords)
    lines = [f"{role}: new" for role in made.new] or ["all roles were there; their rights are as they should be"]
    lines += [f"{role}  {url}" for role, url in made.urls.items()]
    out.result(
        {"new": made.new, "urls": made.urls},
        *lines,
        "next: OPS_DATABASE_OWNER_URL names ops_owner, DATABASE_URL names ops_app; then ops db upgrade",
    )
