"""The runs of checks: claimed when due, planned, and what they have seen made the checks' states. No run is a job: a
lost or doubled message is harmless, since PostgreSQL holds the schedule and a result counts for its own run alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from pydantic import ValidationError
from sqlalchemy.orm import Session

from db.checkstates import Standing, step
from db.connection import apply_context
from db.errors import OpsError
from db.ledger import clean
from db.models import CheckStanding, MonitoringCheck
from db.probes import KINDS, ProbePlan, Seen
from db.repositories import AuditLogRepository, CheckRepository, TickRepository
from db.services import check_context, secrets
from db.states import CheckKind, CheckState, CheckStatus

#: Runs in one message at most.
BATCH = 100
#: How long a message may wait for a worker, in seconds; then its runs are claimed anew.
EXPIRES = 15.0
#: A message of a result is cut to this length.
MESSAGE_CHARACTERS = 500
#: So many missed runs are a gap in what is known of a check.
GAP = 2
#: The tick that claims. That it has run at a time to come says that the clock was set back.
TICK = "checks"
#: Where it has not run for longer, the platform was away, and with it the door at which heartbeats report.
AWAY = timedelta(seconds=30)
#: Equal intervals spread: check n starts n times the golden ratio into its interval.
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Run:
    """A run in flight. ``taken``: the batch under the name that no message has. ``plan`` is None where it cannot be
    made; ``problem`` says why."""

    check_id: int
    taken: UUID
    scheduled_at: datetime
    standing: Standing
    interval_seconds: int
    retry_seconds: int
    failure_threshold: int
    success_threshold: int
    plan: ProbePlan | None
    problem: str | None = None


def claim(session: Session) -> dict[UUID, list[int]]:
    """The runs that are due, by the batch in which they are to be sent; empty: nothing is due. What was missed before
    them, and batches that never came back, are recorded."""
    apply_context(session)
    checks = CheckRepository(session)
    claimed = checks.claim([uuid4() for _ in range(3)], limit=BATCH, expires=EXPIRES)
    if missed := [run for run in claimed if run.missed]:
        checks.add_missed(missed)
        if gaps := [run for run in missed if run.missed >= GAP]:
            checks.cut_intervals(gaps)
    audit = AuditLogRepository(session)
    for batch, count in Counter(run.lost_batch for run in claimed if run.lost_batch).items():
        audit.add("check.batch_lost", "check_batch", batch, {"checks": count})
    batches: dict[UUID, list[int]] = {}
    for run in claimed:
        batches.setdefault(run.batch_id, []).append(run.check_id)
    return batches


def recall(session: Session) -> int:
    """After the database's clock was set back: what would wait for the time that it had is due now. How many checks."""
    return CheckRepository(session).recall() if TickRepository(session).is_of_the_future(TICK) else 0


def excuse(session: Session) -> int:
    """After the platform was away: a heartbeat that was due meanwhile, or is soon, has its grace anew, since it may
    have found nobody to report to. How many."""
    since = TickRepository(session).silent_since(TICK, AWAY)
    return 0 if since is None else CheckRepository(session).excuse(since)


def load(session: Session, *, batch_id: UUID, check_ids: Sequence[int]) -> list[Run]:
    """The runs of a batch that are still in flight, with all they need; their secrets are opened, which is recorded.
    They are the caller's alone: the same message again finds none."""
    taken, rows = CheckRepository(session).take(batch_id, check_ids)
    opened = _open(session, [check for _, check in rows])
    known = check_context.gather(session, rows)
    return [_run(taken, standing, check, opened[check.id], known.get(check.id, {})) for standing, check in rows]


def record(session: Session, *, batch_id: UUID, runs: Sequence[Run], seen: Mapping[int, Seen]) -> dict[str, Any]:
    """Write what was seen and what follows from it: two statements, and two more where a state has changed. One
    entry in the trail tells of the batch. Answers its counts."""
    apply_context(session)
    checks = CheckRepository(session)
    after = {run.check_id: _after(run, seen[run.check_id].status) for run in runs}
    counted = checks.record(runs[0].taken, [_row(run, seen[run.check_id], after[run.check_id]) for run in runs])
    moved = {
        run.check_id: (_known(run.standing, run), _known(after[run.check_id], run))
        for run in runs
        if run.check_id in counted
    }
    changed = {check_id: new for check_id, (old, new) in moved.items() if old is not new}
    if changed:
        checks.move_intervals(changed)
    counts: dict[str, Any] = dict(Counter(seen[check_id].status.value for check_id in sorted(counted)))
    if late := len(runs) - len(counted):
        counts["late"] = late
    if changed:
        counts["changed"] = {str(check_id): [moved[check_id][0].value, new.value] for check_id, new in changed.items()}
    AuditLogRepository(session).add("check.batch", "check_batch", batch_id, counts)
    return counts


def phase(check_id: int, interval_seconds: float) -> float:
    """Where in its interval a check runs, in seconds: always the same, and spread."""
    return check_id * _GOLDEN % 1.0 * interval_seconds


def _known(standing: Standing, run: Run) -> CheckState:
    """The state as uptime counts it: unknown while no run can see anything."""
    return CheckState.UNKNOWN if standing.is_blind(run.failure_threshold) else standing.state


def _after(run: Run, status: CheckStatus) -> Standing:
    return step(run.standing, status, failure_threshold=run.failure_threshold, success_threshold=run.success_threshold)


def _row(run: Run, seen: Seen, after: Standing) -> dict[str, Any]:
    message = clean(seen.message[:MESSAGE_CHARACTERS]) if seen.message else None
    # A heartbeat's next run is its deadline; looking again soon would find the same.
    retries = after.is_failing_softly and seen.due_at is None
    return asdict(after) | {
        "check_id": run.check_id,
        "scheduled_at": run.scheduled_at.isoformat(),
        "status": seen.status,
        "latency_seconds": seen.latency_seconds,
        "message": message,
        "facts": _storable(seen.facts) or None,
        "every": run.interval_seconds,
        "phase": phase(run.check_id, run.interval_seconds),
        "retry_in": run.retry_seconds if retries else None,
        "due_at": seen.due_at.isoformat() if seen.due_at else None,
    }


def _storable(value: Any) -> Any:
    """A value as the database can hold it, and no longer than it is worth: one that it refuses would cost the results
    of the whole batch, and strangers have written some."""
    match value:
        case str():
            return clean(value[:MESSAGE_CHARACTERS])
        case float() if value - value != 0:
            return None  # JSON knows nothing infinite
        case Mapping():
            return {name: _storable(each) for name, each in value.items()}
        case list():
            return [_storable(each) for each in value]
    return value


def _run(taken: UUID, standing: CheckStanding, check: MonitoringCheck, opened: Any, known: Mapping[str, Any]) -> Run:
    assert standing.scheduled_at is not None
    failures, successes = check.failure_threshold, check.success_threshold
    if check.kind is CheckKind.HEARTBEAT:
        failures = successes = 1  # a report that is missing is missing; there is nothing to ask again
    run = Run(
        check.id, taken, standing.scheduled_at, _standing(standing), check.interval_seconds,
        check.retry_seconds or max(1, check.interval_seconds // 3), failures, successes, None,
    )  # fmt: skip
    if isinstance(opened, str):
        return replace(run, problem=opened)
    try:
        config = KINDS[check.kind].model_validate(check.config)
    except ValidationError:
        return replace(run, problem="its settings are not as this release knows them; edit it")
    return replace(run, plan=ProbePlan(check.id, check.kind, config, check.timeout_seconds, opened, known))


def _standing(row: CheckStanding) -> Standing:
    return Standing(
        row.state, row.seen, row.downs, row.bads, row.goods, row.betters, row.blinds, row.changes, row.is_flapping
    )


def _open(session: Session, checks: Sequence[MonitoringCheck]) -> dict[int, Any]:
    """The open secrets of each check, or in one line why they cannot be had. Each is opened once a batch."""
    opened: dict[int, Any] = {}
    at_hand: dict[tuple[int, str], str] = {}
    for check in checks:
        wanted = _wanted(check)
        try:
            for name in set(wanted.values()) - {name for owner, name in at_hand if owner == check.owner_id}:
                found = secrets.open_all(session, owner_id=check.owner_id, wanted={name: name}, check_id=check.id)
                at_hand[check.owner_id, name] = found[name]
            opened[check.id] = {use: at_hand[check.owner_id, name] for use, name in wanted.items()}
        except OpsError as error:
            opened[check.id] = str(error)
    return opened


def _wanted(check: MonitoringCheck) -> dict[str, str]:
    try:
        return KINDS[check.kind].model_validate(check.config).secrets()
    except ValidationError:
        return {}
