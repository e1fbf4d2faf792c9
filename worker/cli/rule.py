"""`ops rule`: by what the platform watches itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import acting
from worker.cli.output import duration, out

if TYPE_CHECKING:
    from db.services.rules import Rule

app = typer.Typer(help="Rules: by what the platform watches itself. Each has a page in docs/runbooks.")

Name = Annotated[str, typer.Argument(help="The rule's name.")]


@app.command("list")
def list_() -> None:
    """List the rules, and what of them was changed. Example: ops rule list"""
    from db.services import rules

    with acting.session(write=False) as (session, _):
        items = [view(rule) for rule in rules.all_(session).values()]
    if not out.json:
        for item in items:
            item["fires_at"] = "-" if item["threshold"] is None else _says(item)
            item["for"] = duration(item["for_seconds"]) if item["for_seconds"] else "at once"
            item["severity"] = item["severity"] or "by environment"
    out.page("rules", ("name", "enabled", "fires at", "for", "severity", "changed", "watches"), items, None)


@app.command()
def show(name: Name) -> None:
    """Show one rule. Example: ops rule show queue_age"""
    from db.services import rules

    with acting.session(write=False) as (session, _):
        shown = view(rules.effective(session, name))
    if out.json:
        out.record(shown)
    else:
        out.table(None, ("field", "value"), shown.items())


@app.command("set", epilog="Example: ops rule set queue_age --threshold 600 --severity medium")
def set_(
    name: Name,
    threshold: Annotated[float | None, typer.Option(help="The value beyond which it fires.")] = None,
    lasting: Annotated[str | None, typer.Option("--for", help="How long it must be so: 60s, 5m.")] = None,
    severity: Annotated[str | None, typer.Option(help="low, medium, high or critical.")] = None,
) -> None:
    """Change a rule; what is not named stays."""
    from db.errors import InvalidInput
    from worker.cli.moments import span

    if threshold is None and lasting is None and severity is None:
        raise InvalidInput("nothing to change is named", hint="ops rule set --help")
    seconds = None if lasting is None else int(span(lasting, "--for").total_seconds())
    _change(name, "ops rule set", threshold=threshold, for_seconds=seconds, severity=severity)


@app.command()
def enable(name: Name) -> None:
    """Watch again. Example: ops rule enable slow_queries"""
    _change(name, "ops rule enable", enabled=True)


@app.command()
def disable(name: Name) -> None:
    """Watch no more; its open alerts are resolved. Example: ops rule disable slow_queries"""
    _change(name, "ops rule disable", enabled=False)


@app.command()
def reset(name: Name) -> None:
    """Make a rule as it is shipped again. Example: ops rule reset queue_age"""
    from db.services import rules

    with acting.session(action="ops rule reset") as (session, actor):
        shown = view(rules.reset(session, name=name, actor=actor))
    out.result(shown, f"rule {name} is as it is shipped")


def _change(name: str, action: str, **values: Any) -> None:
    from db.services import rules

    with acting.session(action=action) as (session, actor):
        rule = rules.change(session, name=name, actor=actor, **values)
        shown = view(rule)
    state = "is disabled" if not rule.enabled else f"fires at {_says(shown)}" if rule.threshold is not None else "is on"
    out.result(shown, f"rule {name} {state}")


def view(rule: Rule) -> dict[str, Any]:
    """A rule as it is shown."""
    return {
        "name": rule.name, "watches": rule.says, "enabled": rule.enabled, "threshold": rule.threshold,
        "below": rule.below, "unit": rule.unit, "for_seconds": rule.for_seconds, "severity": rule.severity,
        "changed": rule.is_changed, "runbook": f"docs/runbooks/{rule.name}.md",
    }  # fmt: skip


def _says(item: dict[str, Any]) -> str:
    return f"{'<' if item['below'] else '>'} {item['threshold']:g} {item['unit']}"
