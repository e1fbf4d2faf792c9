"""Drawings of the status page, as SVG that stands in the page. Each says in words what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from db.services.status_pages import Check, Day

_WIDTH, _GAP, _HEIGHT = 3, 1, 24
#: A day with less than this of its time up is shown as down; with anything less than all as degraded.
_DOWN_BELOW, _UP_FROM = 0.95, 0.9999
#: Shapes as well as colours: a day with trouble is cut, a day of which nothing is known is low.
_SHAPES = {
    "up": (0, _HEIGHT), "degraded": (6, _HEIGHT - 6), "down": (12, _HEIGHT - 12), "none": (_HEIGHT - 4, 4),
}  # fmt: skip
_TROUBLES = 8


def days(check: Check) -> str:
    """Bars, a day each."""
    words = [_word(day) for day in check.days]
    paths = []
    for word, (top, height) in _SHAPES.items():
        places = [n * (_WIDTH + _GAP) for n, found in enumerate(words) if found == word]
        if places:
            path = "".join(f"M{x} {top}h{_WIDTH}v{height}h-{_WIDTH}z" for x in places)
            paths.append(f'<path class="fill-{word}" d="{path}"/>')
    width = len(words) * (_WIDTH + _GAP) - _GAP
    return (
        f'<svg class="days" viewBox="0 0 {width} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(_said(check, words))}">{"".join(paths)}</svg>'
    )


def key(word: str) -> str:
    """One bar, for the explanation of all."""
    top, height = _SHAPES[word]
    return (
        f'<svg viewBox="0 0 3 {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="fill-{word}" d="M0 {top}h3v{height}h-3z"/></svg>'
    )


def latency(values: Sequence[float | None]) -> str:
    """A line over the hours; where nothing was measured it is broken."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    top = max(known) * 1.1 or 1.0
    path, pen_down = "", False
    for place, value in enumerate(values):
        if value is None:
            pen_down = False
            continue
        path += f"{'L' if pen_down else 'M'}{place} {30 - 28 * value / top:.1f}"
        # A lone hour is a dot.
        if not pen_down and (place + 1 == len(values) or values[place + 1] is None):
            path += "h.01"
        pen_down = True
    said = f"Median response time by hour: {seconds(min(known))} to {seconds(max(known))}, lately {seconds(known[-1])}"
    return (
        f'<svg class="latency" viewBox="0 0 {max(1, len(values) - 1)} 32" preserveAspectRatio="none" role="img"'
        f' aria-label="{said}"><path d="{path}"/></svg>'
    )


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def percent(share: float) -> str:
    """Never rounded up to what it is not."""
    if share >= 1:
        return "100 %"
    return f"{int(share * 10_000) / 100:.2f} %"


def _word(day: Day) -> str:
    share = day.share
    if share is None:
        return "none"
    if share < _DOWN_BELOW:
        return "down"
    return "up" if share >= _UP_FROM and not day.degraded else "degraded"


def _said(check: Check, words: Sequence[str]) -> str:
    troubled = [day for day, word in zip(check.days, words, strict=True) if word in ("degraded", "down")]
    unknown = sum(word == "none" for word in words)
    parts = [f"The last {len(words)} days: " + ("no trouble" if not troubled else f"trouble on {len(troubled)}")]
    parts += [f"{day.date:%d %B} {percent(day.share or 0.0)} up" for day in troubled[-_TROUBLES:]]
    if unknown:
        parts.append(f"nothing known of {unknown}")
    return ", ".join(parts)
