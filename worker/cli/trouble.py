"""What `ops status` says of what is wrong: alerts that fire, checks that are down, schedules that have stopped."""

from __future__ import annotations

from typing import Any

from worker.cli.output import ago, out
from worker.cli.output import show as cell


def print_trouble(status: dict[str, Any]) -> None:
    """Print what of it there is; nothing where nothing is wrong."""
    alive = {each["kind"] for each in status["processes"] if each["alive"]}
    if "worker" in alive and "beat" not in alive:
        out.line("no beat lives: checks, schedules and seals wait; next: celery -A worker.app beat", style="yellow")
    draining = [each["name"] for each in status["processes"] if each["alive"] and each["draining_at"] is not None]
    if draining:
        out.line(f"{len(draining)} drained: {', '.join(draining)}; next: ops undrain --all", style="yellow")
    if status["firing"]:
        rows = [
            (each["id"], each["severity"], cell(each["title"]), ago(each["fired_at"]),
             "acknowledged" if each["acknowledged_at"] else "nobody")
            for each in status["firing"]
        ]  # fmt: skip
        out.table("alerts that fire", ("alert", "severity", "what", "since", "looked after"), rows)
        if (more := status["open_alerts"] - len(rows)) > 0:
            out.line(f"and {more} more that are open: ops alert list", style="yellow")
    if status["checks_down"]:
        down = [
            (each["name"], each["state"], ago(each["since_at"]), cell(each["last_message"]))
            for each in status["checks_down"]
        ]
        out.table("checks", ("check", "state", "since", "why"), down)
        if (more := sum(status["checks"].get(state, 0) for state in ("down", "degraded")) - len(down)) > 0:
            out.line(f"and {more} more: ops check list --state down, or degraded", style="yellow")
    if status["schedules_paused"]:
        paused = [(each["name"], ago(each["paused_at"]), each["paused_because"]) for each in status["schedules_paused"]]
        out.table("schedules that were paused", ("schedule", "paused", "why"), paused)
    if status["checks"]:
        out.line("checks: " + ", ".join(f"{count} {state}" for state, count in status["checks"].items()))
