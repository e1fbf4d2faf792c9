"""The status page: one file of HTML with everything in it, that works without scripts and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path

from db.services.status_pages import (
    INCIDENT_DAYS,
    PLOT_HOURS,
    Check,
    Group,
    Incident,
    Maintenance,
    Standing,
    StatusPage,
)
from worker.serve import plots

CSS = (Path(__file__).parent / "page.css").read_text("utf-8").strip()
_HASH = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
#: No script, no other origin; the one style by its hash. `frame-ancestors` counts in a header only.
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"
WORDS = {
    Standing.UP: "Up", Standing.DEGRADED: "Degraded", Standing.DOWN: "Down", Standing.UNKNOWN: "Not known",
    Standing.MAINTENANCE: "Maintenance", Standing.PAUSED: "Paused",
}  # fmt: skip
_RANK = {
    word: rank
    for rank, word in enumerate(
        (Standing.DOWN, Standing.DEGRADED, Standing.UNKNOWN, Standing.MAINTENANCE, Standing.UP, Standing.PAUSED)
    )
}
_NAMES = 8
#: With more checks than this, groups without trouble are folded.
FOLD_ABOVE = 30


def render(page: StatusPage, title: str) -> str:
    """The whole page."""
    return _document(title, "".join(_body(page)), f"As of {_time(page.at)}.")


def unavailable(title: str) -> str:
    """Where nothing can be known: what was true some time ago may not be now."""
    said = '<div class="overall" role="status"><strong>The state is not known at the moment</strong></div>'
    return _document(title, f"{said}<p>Please try again in a minute.</p>", "")


def _document(title: str, body: str, foot: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f"<header><h1>{escape(title)}</h1></header><main>{body}</main>"
        f'<footer class="soft"><p>{foot} Days are UTC. Time that was paused, in maintenance or not'
        " known counts neither as up nor as down.</p></footer></body></html>\n"
    )


def _body(page: StatusPage) -> Iterator[str]:
    checks = page.checks
    word, said = _overall(checks)
    yield f'<div class="overall {word}" role="status"><strong>{escape(said)}</strong></div>'
    if not checks:
        yield "<p>Nothing is shown here yet.</p>"
        return
    yield '<section aria-labelledby="services"><h2 id="services">Services</h2>'
    for group in page.groups:
        yield from _group(group, named=len(page.groups) > 1, folds=len(checks) > FOLD_ABOVE)
    keys = (("up", "up"), ("degraded", "some trouble"), ("down", "down for more than 5 %"), ("none", "not known"))
    yield '<p class="key soft">' + "".join(f"<span>{plots.key(name)}{text}</span>" for name, text in keys) + "</p>"
    yield "</section>"
    yield from _maintenance(page.maintenance, page.at)
    yield from _incidents(page.incidents, page.at)


def _overall(checks: Sequence[Check]) -> tuple[str, str]:
    """The worst of all, and everything that is not well."""
    counts = Counter(check.standing for check in checks)
    total = len(checks) - counts[Standing.PAUSED] - counts[Standing.MAINTENANCE]
    if not total and counts[Standing.MAINTENANCE]:
        return "none", "Maintenance is under way"
    if not total:
        return "none", "Nothing is being watched" if not checks else "Everything is paused"
    ill = [each for each in (Standing.DOWN, Standing.DEGRADED, Standing.UNKNOWN) if counts[each]]
    if not ill:
        rest = f", {counts[Standing.MAINTENANCE]} in maintenance" if counts[Standing.MAINTENANCE] else ""
        return "up", f"All {'others' if rest else 'systems'} are up{rest}"
    if counts[Standing.UNKNOWN] == total:
        return "none", "The state is not known"
    first, *others = (f"{counts[each]} {WORDS[each].lower()}" for each in ill)
    number, _, word = first.partition(" ")
    said = ", ".join([f"{number} of {total} {word}", *others])
    return "none" if ill[0] is Standing.UNKNOWN else ill[0].value, said


def _group(group: Group, *, named: bool, folds: bool) -> Iterator[str]:
    counts = Counter(check.standing for check in group.checks)
    # In a long list whoever looks for trouble must not have to search.
    shown = sorted(group.checks, key=lambda check: _RANK[check.standing]) if folds else group.checks
    items = "".join(_check(check, level=4 if named and not folds else 3) for check in shown)
    if not folds:
        heading = f"<h3>{escape(group.name)}</h3>" if named else ""
        yield f'{heading}<div class="group"><ul>{items}</ul></div>'
        return
    said = ", ".join(f"{counts[each]} {WORDS[each].lower()}" for each in Standing if counts[each])
    troubled = counts[Standing.DOWN] + counts[Standing.DEGRADED] + counts[Standing.UNKNOWN]
    is_open = " open" if troubled else ""
    yield (
        f'<details class="group"{is_open}><summary>{escape(group.name)}<span class="soft">{said}</span></summary>'
        f"<ul>{items}</ul></details>"
    )


def _check(check: Check, level: int) -> str:
    uptime = check.uptime
    share = "not known yet" if uptime is None else f"{plots.percent(uptime)} up"
    drawn = plots.latency(check.latencies)
    if drawn:
        newest = [value for value in check.latencies if value is not None][-1]
        drawn += (
            f'<div class="foot soft"><span>response time, {PLOT_HOURS} hours</span>'
            f"<span>{plots.seconds(newest)}</span></div>"
        )
    return (
        f'<li class="check"><div class="head"><h{level}>{escape(check.name)}</h{level}>'
        f'<span class="state {check.standing.value}">{WORDS[check.standing]}</span></div>{plots.days(check)}'
        f'<div class="foot soft"><span>{len(check.days)} days</span><span>{share}</span></div>{drawn}</li>'
    )


def _maintenance(works: Sequence[Maintenance], now: datetime) -> Iterator[str]:
    if not works:
        return
    yield '<section aria-labelledby="maintenance"><h2 id="maintenance">Maintenance</h2><div class="group"><ol>'
    for each in works:
        named = ", ".join(each.names[:_NAMES])
        if len(each.names) > _NAMES:
            named += f" and {len(each.names) - _NAMES} more"
        word = "Under way" if each.starts_at <= now else "Planned"
        yield (
            f'<li class="incident"><strong>{escape(named)}</strong> <span class="soft">{word}:'
            f" {_time(each.starts_at)} to {_time(each.ends_at)}</span></li>"
        )
    yield "</ol></div></section>"


def _incidents(incidents: Sequence[Incident], now: datetime) -> Iterator[str]:
    yield '<section aria-labelledby="incidents"><h2 id="incidents">Incidents</h2><div class="group">'
    if not incidents:
        yield f'<p class="soft">None in the last {INCIDENT_DAYS} days.</p>'
    else:
        yield "<ol>"
        for each in incidents:
            lasted = _duration((each.ended_at or now) - each.started_at)
            said = f"down for {lasted}" if each.ended_at else f"down since then, for {lasted} so far"
            yield (
                f'<li class="incident"><strong>{escape(each.name)}</strong> <span class="soft">'
                f"{_time(each.started_at)}, {said}</span></li>"
            )
        yield "</ol>"
    yield "</div></section>"


def _time(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f'<time datetime="{moment.isoformat(timespec="seconds")}">{moment:%d %B %Y, %H:%M} UTC</time>'


def _duration(length: timedelta) -> str:
    minutes = max(1, round(length.total_seconds() / 60))
    parts = ((minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min"))
    return " ".join([f"{count} {unit}" for count, unit in parts if count][:2])
