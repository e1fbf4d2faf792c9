"""A check's past on a terminal: sparklines, uptime, incidents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worker.cli.output import ago, duration, out

_BARS = "▁▂▃▄▅▆▇█"
#: What stands for a run without a latency to show.
_SIGNS = {"down": "✗", "unknown": "?", "missed": "·"}


def tell(shown: dict[str, Any]) -> None:
    """Print a summary as :func:`db.services.check_history.summary` has it."""
    results = shown["results"]
    out.line(f"check {shown['name']}: {shown['state']} for {ago(shown['since_at']).removesuffix(' ago')}")
    if not results:
        out.line("no results yet")
    else:
        out.line()
        out.line(sparkline(results))
        seen = [each["latency_seconds"] for each in results if each["latency_seconds"] is not None]
        span = f"{milliseconds(min(seen))} to {milliseconds(max(seen))}" if seen else "no latency"
        signs = ", ".join(f"{sign} {word}" for word, sign in _SIGNS.items())
        out.line(f"{len(results)} runs, oldest {ago(results[0]['at'])}; {span}; {signs}")
    uptime = ((window, "-" if share is None else f"{share:g} %") for window, share in shown["uptime_percent"].items())
    out.table("uptime, without paused and unknown times", ("window", "up"), uptime)
    if shown["latency_seconds"]:
        latency = ((name, milliseconds(value)) for name, value in shown["latency_seconds"].items())
        out.table("latency of the last day's whole hours", ("percentile", "at most"), latency)
    if shown["incidents"]:
        rows = (
            (each["started_at"], each["ended_at"] or "goes on", duration(each["seconds"]))
            for each in shown["incidents"]
        )
        out.table("incidents of 90 days", ("down since", "until", "for"), rows)
    else:
        out.line("no incident in 90 days")


def sparkline(results: Sequence[dict[str, Any]]) -> str:
    """One sign per run, oldest first: the height is the latency as a share of the highest."""
    highest = max((each["latency_seconds"] or 0.0 for each in results), default=0.0)

    def sign(each: dict[str, Any]) -> str:
        if str(each["status"]) in _SIGNS:
            return _SIGNS[str(each["status"])]
        share = (each["latency_seconds"] or 0.0) / highest if highest else 0.0
        return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)]

    return "".join(map(sign, results))


def milliseconds(seconds: float | None) -> str | None:
    """A latency as people read it."""
    if seconds is None:
        return None
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
