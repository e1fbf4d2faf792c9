"""What must hold after a run of the hammer, computed from the tables and from the effects that were noted outside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from uuid import UUID

from tests.chaos.plan import Effect, Report


def broken_promises(report: Report) -> list[str]:
    """One sentence per promise that was broken and where; empty when all were kept."""
    checks: tuple[Callable[[Report], Iterator[str]], ...] = (
        _all_ended, _no_error_surfaced, _none_started_twice, _none_overlapped, _trail_tells_every_attempt,
        _ends_are_true,
    )  # fmt: skip
    return [sentence for check in checks for sentence in check(report)]


def _all_ended(report: Report) -> Iterator[str]:
    if report.left:
        yield f"{report.left} jobs have not ended"
    if len(report.jobs) != len(report.orders):
        yield f"{len(report.orders)} jobs were enqueued, {len(report.jobs)} are there"


def _no_error_surfaced(report: Report) -> Iterator[str]:
    yield from (f"{count} times: {error}" for error, count in report.errors.items())


def _none_started_twice(report: Report) -> Iterator[str]:
    starts = Counter(effect.job for effect in report.effects)
    for job_id, count in starts.items():
        if count > 1 and not report.orders[job_id].idempotent:
            yield f"job {job_id} is not idempotent and took effect {count} times"


def _none_overlapped(report: Report) -> Iterator[str]:
    by_key: dict[str, list[Effect]] = defaultdict(list)
    for effect in report.effects:
        if key := report.orders[effect.job].lock_key:
            by_key[key].append(effect)
    for key, effects in by_key.items():
        effects.sort(key=lambda effect: effect.started)
        for one, next_one in pairwise(effects):
            if next_one.started < one.ended:
                yield f"on {key} jobs {one.job} and {next_one.job} took effect at the same time"


def _trail_tells_every_attempt(report: Report) -> Iterator[str]:
    """Walk the trail: each attempt starts and ends once, one job at a time on each key, ends as its row says."""
    running: dict[UUID, int] = {}
    holder: dict[str, UUID] = {}
    attempts: Counter[UUID] = Counter()
    last: dict[UUID, str] = {}
    for job_id, action, details in report.trail:
        key = report.orders[job_id].lock_key
        if action == "started":
            attempts[job_id] += 1
            if job_id in running or details["attempt"] != attempts[job_id]:
                yield f"job {job_id} started attempt {details['attempt']} while the trail is at {attempts[job_id]}"
            if key and key in holder:
                yield f"on {key} job {job_id} started while {holder[key]} ran"
            running[job_id] = attempts[job_id]
            if key:
                holder[key] = job_id
        elif action in ("succeeded", "failed", "lost", "retried", "cancelled"):
            if running.pop(job_id, None) is None and action != "cancelled":
                yield f"job {job_id} {action} without a start"
            if key and holder.get(key) == job_id:
                del holder[key]
            if action != "retried":
                last[job_id] = action
    for job in report.jobs:
        told = (attempts[job["id"]], "failed" if last.get(job["id"]) == "lost" else last.get(job["id"]))
        if told != (job["attempt"], job["state"]):
            yield f"job {job['id']} is {job['state']} after {job['attempt']} attempts; the trail tells of {told}"


def _ends_are_true(report: Report) -> Iterator[str]:
    """A success took effect; `lost` is said only where the work had begun."""
    done = {(effect.job, effect.attempt) for effect in report.effects}
    for job in report.jobs:
        if job["state"] == "succeeded" and (job["id"], job["attempt"]) not in done:
            yield f"job {job['id']} succeeded without an effect"
        if job["outcome"] == "lost" and not job["begun"]:
            yield f"job {job['id']} is called lost although it had not begun"
