"""`ops app`: what is deployed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import out

if TYPE_CHECKING:
    from db.models import Application

app = typer.Typer(help="Applications: what is deployed.")

Name = Annotated[str, typer.Argument(help="The application's name.")]
Words = Annotated[list[str] | None, typer.Argument(help="The command and its arguments, after `--`.")]
Directory = Annotated[str | None, typer.Option("--dir", help="Working folder of the command (absolute).")]
HealthUrl = Annotated[str | None, typer.Option("--health-url", help="Asked until it answers 2xx.")]
Description = Annotated[str | None, typer.Option(help="One line about it.")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the command; may be repeated.")]
Secret = Annotated[list[str] | None, typer.Option("--secret", help="NAME=SERVICE/KEY: a secret by its name.")]
Promote = Annotated[str | None, typer.Option(help="Command that switches over once healthy (words, no shell).")]
Abort = Annotated[str | None, typer.Option(help="Command that cleans up after a failure (words, no shell).")]
Shell = Annotated[bool | None, typer.Option("--shell/--no-shell", help="Give the one-word command to /bin/sh.")]
Timeout = Annotated[int | None, typer.Option(help="Seconds after which a deployment is stopped.")]
Artifact = Annotated[str | None, typer.Option(help="Content of {version}: a path, https://..., image:NAME, git:URL.")]
Attempts = Annotated[int | None, typer.Option("--health-attempts", help="How often health is asked for.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE: rollout or steps (VALUE may be JSON); may be repeated."),
]
Interval = Annotated[float | None, typer.Option("--health-interval", help="Seconds between two of them.")]


@app.command(epilog="Example: ops app add web --health-url http://127.0.0.1:8000/healthz -- ./deploy.sh")
def add(
    name: Name, command: Words = None, directory: Directory = None, health_url: HealthUrl = None,
    description: Description = None, env: Env = None, secret: Secret = None, promote: Promote = None,
    abort: Abort = None, shell: Shell = None, timeout: Timeout = None, health_attempts: Attempts = None,
    health_interval: Interval = None, artifact: Artifact = None, setting: Set = None,
) -> None:  # fmt: skip
    """Register an application. A command such as ./deploy.sh runs in this folder, unless --dir names another."""
    from db.errors import InvalidInput
    from db.services import applications

    if not command and not artifact:
        raise InvalidInput("the command is missing; it comes last, after --", hint=f"ops app add {name} -- ./deploy.sh")
    values = _fields(command, directory or _folder_of(command), health_url, description)
    values["configuration"] = _configuration(
        {}, env, secret, promote, abort, shell, timeout, health_attempts, health_interval, artifact, setting
    )
    with acting.session(action="ops app add") as (session, user):
        made = applications.register(session, actor=user, name=name, **values)
        shown = view(made)
    where = f"; it runs in {made.working_directory}" if made.working_directory else ""
    line = f"application {made.name} is registered{where}"
    out.result(shown, line, f"next: ops deploy {made.name} VERSION --to INFRA")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="Rows per page.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, max=2**63 - 1, help="Where the page before ended.")] = None,
) -> None:
    """List applications, newest first. Example: ops app list"""
    from db.repositories import ApplicationRepository

    with acting.session(write=False) as (session, _):
        page = ApplicationRepository(session).list_(limit=limit, before=before)
    items = [view(each) for each in page.items]
    out.page("applications", ("id", "name", "command", "health check url", "updated at"), items, _text(page.next))


@app.command()
def show(name: Name) -> None:
    """Show one application. Example: ops app show web"""
    from db.repositories import ApplicationRepository

    with acting.session(write=False) as (session, _):
        found = ApplicationRepository(session).require_by_name(name)
    shown = view(found)
    if out.json:
        out.record(shown)
    else:
        out.table(None, ("field", "value"), shown.items())


@app.command(epilog="Example: ops app edit web --env LEVEL=debug --health-attempts 10")
def edit(
    name: Name, command: Words = None, directory: Directory = None, health_url: HealthUrl = None,
    description: Description = None, env: Env = None, secret: Secret = None, promote: Promote = None,
    abort: Abort = None, shell: Shell = None, timeout: Timeout = None, health_attempts: Attempts = None,
    health_interval: Interval = None, artifact: Artifact = None, setting: Set = None,
) -> None:  # fmt: skip
    """Change what is named; an empty value removes it (--env NAME= sets an empty one)."""
    from db.errors import InvalidInput
    from db.repositories import ApplicationRepository
    from db.services import applications

    named = (env, secret, promote, abort, shell, timeout, health_attempts, health_interval, artifact, setting)
    if not command and all(value is None for value in (directory, health_url, description, *named)):
        raise InvalidInput("nothing to change is named", hint="ops app edit --help")
    with acting.session(action="ops app edit") as (session, user):
        found = ApplicationRepository(session).require_by_name(name)
        if directory is None and found.working_directory is None:
            directory = _folder_of(command)
        values = _fields(command, directory, health_url, description)
        values["configuration"] = _configuration(found.configuration, *named)
        edited = applications.edit(session, application=found, actor=user, **values)
        shown = view(edited)
    out.result(shown, f"application {name} is changed; deployments asked for from now on use it")


@app.command()
def rm(name: Name) -> None:
    """Remove an application that was never deployed. Example: ops app rm web"""
    from db.repositories import ApplicationRepository
    from db.services import applications

    with acting.session(action="ops app rm") as (session, user):
        found = ApplicationRepository(session).require_by_name(name)
        applications.remove(session, application=found, actor=user)
    out.result({"removed": name}, f"application {name} is removed")


def view(application: Application) -> dict[str, Any]:
    """An application as it is shown."""
    return {
        "id": application.id,
        "name": application.name,
        "description": application.description,
        "command": shlex.join(application.command),
        "working_directory": application.working_directory,
        "health_check_url": application.health_check_url,
        "configuration": application.configuration,
        "updated_at": application.updated_at,
    }


def _fields(
    command: list[str] | None, directory: str | None, health_url: str | None, description: str | None
) -> dict[str, Any]:
    given = {"working_directory": directory, "health_check_url": health_url, "description": description}
    values: dict[str, Any] = {name: value or None for name, value in given.items() if value is not None}
    return values | ({"command": command} if command else {})


def _folder_of(command: list[str] | None) -> str | None:
    """Where a relative path such as ``./deploy.sh`` means something: here. Workers run elsewhere."""
    relative = command and "/" in command[0] and not command[0].startswith("/")
    return str(Path.cwd()) if relative else None


def _configuration(
    current: dict[str, Any], env: list[str] | None, secret: list[str] | None, promote: str | None, abort: str | None,
    shell: bool | None, timeout: int | None, attempts: int | None, interval: float | None, artifact: str | None,
    settings: list[str] | None,
) -> dict[str, Any]:  # fmt: skip
    made = dict(current)
    for field, pairs in (("environment", env), ("secrets", secret)):
        if pairs:
            made[field] = made.get(field, {}) | dict(pair_of(each) for each in pairs)
    for field, words in (("promote", promote), ("abort", abort)):
        if words is not None:
            made[field] = words_of(words, f"--{field}") if words else None
    health = {"attempts": attempts, "interval_seconds": interval}
    if given := {name: value for name, value in health.items() if value is not None}:
        made["health"] = made.get("health", {}) | given
    if artifact is not None:
        made["artifact"] = artifact or None
    if shell is not None:
        made["shell"] = shell
    if timeout is not None:
        made["timeout_seconds"] = timeout
    return made | dict(setting_of(each) for each in settings or [])


def setting_of(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``, where a value that reads as JSON other than text is that. Raises InvalidInput."""
    name, value = pair_of(text)
    read = json_of(name, value)
    return name, value if isinstance(read, str) else read


def json_of(name: str, value: str) -> Any:
    """JSON where it is that, else the text as it is. Raises InvalidInput for what begins as an object or a list, and is
    none: it was never meant as text."""
    from db.errors import InvalidInput

    try:
        return json.loads(value)
    except ValueError as error:
        if value.startswith(('{"', '["', "[{")):
            raise InvalidInput(f"--set {name}= is followed by what is no JSON: {error}") from None
        return value


def pair_of(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` as its parts. Raises InvalidInput."""
    from db.errors import InvalidInput

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput(f"{name or text!r} needs a value: NAME=VALUE")
    return name, value


def words_of(text: str, option: str) -> list[str]:
    """A line as words, quoted as for a shell. Raises InvalidInput."""
    from db.errors import InvalidInput

    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidInput(f"{option}: {error}") from None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
