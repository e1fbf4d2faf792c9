"""Is a queue of this platform heard by enough workers, and emptied in time? The figures come with the plan."""

from __future__ import annotations

from db.probes import CeleryCheck, ProbePlan, Seen
from db.states import CheckStatus
from tasks.probes.net import Down, Net


async def look(plan: ProbePlan, net: Net) -> Seen:  # noqa: ARG001 - nothing is connected to
    config: CeleryCheck = plan.config
    workers, due, age = (plan.known[name] for name in ("workers", "due", "age_seconds"))
    facts = {"workers": workers, "due": due, "age_seconds": round(age, 1)}
    if workers < config.min_workers:
        raise Down(f"{workers} workers hear the queue, not {config.min_workers}", facts=facts)
    if config.max_age_seconds is not None and age > config.max_age_seconds:
        facts |= {"current_value": facts["age_seconds"], "threshold_value": config.max_age_seconds}
        return Seen(CheckStatus.DEGRADED, None, f"a job has been due for {age:.0f} s", facts)
    if config.max_due is not None and due > config.max_due:
        facts |= {"current_value": due, "threshold_value": config.max_due}
        return Seen(CheckStatus.DEGRADED, None, f"{due} jobs are due", facts)
    return Seen(CheckStatus.UP, None, None, facts)
