"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli import (
    alert,
    application,
    audit,
    channel,
    check,
    control,
    database,
    declared,
    deployment,
    doctor,
    draining,
    heartbeat,
    infrastructure,
    job,
    key,
    route,
    rule,
    schedule,
    secret,
    serve,
    silence,
    statuspage,
    user,
)

app = typer.Typer(
    name="ops",
    help="Deployments and monitoring for people who trust Celery. Every command takes --json.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("ai-manage-ops"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one a line for streams.")] = False,
) -> None:
    """Exit codes: 0 ok, 1 the work failed, 2 usage, 3 platform error or unknown, 4 cancelled, 5 refused, 6 not found,
    124 waiting timed out."""


control.register(app)
deployment.register(app)
declared.register(app)
doctor.register(app)
draining.register(app)
serve.register(app)
statuspage.register(app)
for noun, commands in (
    ("app", application.app),
    ("infra", infrastructure.app),
    ("secret", secret.app),
    ("deployment", deployment.app),
    ("check", check.app),
    ("heartbeat", heartbeat.app),
    ("schedule", schedule.app),
    ("job", job.app),
    ("alert", alert.app),
    ("rule", rule.app),
    ("silence", silence.app),
    ("maintenance", silence.maintenance),
    ("channel", channel.app),
    ("route", route.app),
    ("audit", audit.app),
    ("user", user.app),
    ("db", database.app),
    ("encryption-key", key.app),
):
    app.add_typer(commands, name=noun, no_args_is_help=True)
