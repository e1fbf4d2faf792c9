"""Runs deployments: a frozen plan, a driver under a supervisor, its output into the log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from celery import shared_task
from sqlalchemy.exc import DBAPIError

from db.connection import get_db_session
from db.errors import DatabaseUnavailable, OpsError
from db.ledger import PASSING, clean
from db.services import deployments, plans
from db.services.deployments import LEASE_SECONDS, RUN_TASK
from db.settings import get_settings
from db.states import Outcome
from tasks import contents, releases
from tasks.drivers import GRACE_SECONDS, PROGRAMS
from tasks.effect import Effect, base_environment
from tasks.masking import Masker
from tasks.outcomes import Ended
from tasks.reports import Reports
from tasks.supervisor import FINAL

log = structlog.get_logger()

#: Output waits this long at most before it is in the database.
FLUSH_SECONDS = 0.5
#: How long the rest of the output may wait for a database that is away.
CLOSE_SECONDS = 120.0
#: Output is written in pieces of about this size.
PIECE_CHARACTERS = 256 * 1024

_WHY = {
    "cancelled": (Outcome.CANCELLED, "cancelled while it ran"),
    "timeout": (Outcome.TIMEOUT, "it took longer than its timeout and was stopped"),
    "interrupted": (Outcome.INTERRUPTED, "the worker was shut down; the driver was stopped in the middle"),
    "lost": (Outcome.INTERRUPTED, "the lease was lost; the driver was stopped in the middle"),
    "lease ran out": (Outcome.INTERRUPTED, FINAL["lease ran out"]),
    "not started": (Outcome.INTERRUPTED, "the lease ran out before the driver was started"),
    "cannot start": (Outcome.INTERRUPTED, "the driver could not be started"),
    "supervisor died": (Outcome.LOST, "the driver's supervisor died; nobody can know whether it took effect"),
}
_UNKNOWN = "the driver ended without a result (exit code {code}); nobody can know whether it took effect"


@shared_task(bind=True, name=RUN_TASK, durable=True, supervised=True, lease=LEASE_SECONDS, max_attempts=1)
def run(self: Any, deployment_id: int) -> dict[str, Any]:
    """Deploy. Raises Ended with the outcome where it is not success."""
    with Effect() as effect:  # its process starts up while the plan is frozen
        plan = _freeze(self.job, deployment_id)
        _pin(self.job, plan)
        masker = Masker(plan.masked)
        output = Output(deployment_id, self.job.attempt, masker)
        reports = Reports(deployment_id, self.job, masker, effect)
        self.job.begin(supervisor_pid=effect.pid)
        effect.start(
            PROGRAMS[plan.driver], plan.body, lease_end=self.job.lease_end, timeout_end=self.job.timeout_end,
            grace=GRACE_SECONDS[plan.driver], report=self.job.report,
        )  # fmt: skip
        self.job.supervise(effect.renew, effect.stop)
        end, ended = follow(effect, output, reports)

    def is_in_haste() -> bool:
        return self.job.stop_reason == "interrupted" or bool(self.job.is_overdue)

    output.close(is_in_haste)
    reports.close(is_in_haste)
    return conclude(end, ended, masker, output.note + reports.note)


def _freeze(job: Any, deployment_id: int) -> plans.Plan:
    """What is to be done, as it is now and stays for this attempt; raises Ended where it cannot be."""
    try:
        with get_db_session() as session:
            plan = plans.freeze(
                session, deployment_id=deployment_id, job_id=job.id, attempt=job.attempt, fence=job.fence
            )
    except (DatabaseUnavailable, DBAPIError) as error:
        # Nothing has begun: the ledger puts the job back.
        raise Ended(Outcome.INTERRUPTED, f"the database went away: {type(error).__name__}") from None
    except OpsError as error:
        raise Ended(Outcome.FAILED, str(error)) from None
    if plan.driver == "command":
        plan.body["environment"] = base_environment() | plan.body["environment"]
    return plan


def _pin(job: Any, plan: plans.Plan) -> None:
    """See that the version's content is what it was when it was asked for, or else fix what it is from now on; raises
    Ended where it is another by now, or cannot be looked up."""
    if plan.release is None:
        return
    try:
        found = releases.resolve(plan.release, plan.version, plan.folder)
    except contents.ReleaseError as error:
        raise Ended(Outcome.FAILED, str(error)) from None
    if found is None:
        return
    known = plan.digest
    if known is None:
        try:
            with get_db_session() as session:
                known = deployments.pin(session, deployment_id=plan.deployment_id, job_id=job.id, digest=found)
        except (DatabaseUnavailable, DBAPIError) as error:
            raise Ended(Outcome.INTERRUPTED, f"the database went away: {type(error).__name__}") from None
    if known != found:
        raise Ended(
            Outcome.FAILED, f"the content of {plan.version} is another by now: asked for was {known}, it is {found}"
        )
    if "environment" in plan.body:
        plan.body["environment"]["OPS_RELEASE_DIGEST"] = found
    if plan.body.get("artifact") is not None:
        plan.body["artifact"]["digest"] = found


def follow(effect: Effect, output: Output, reports: Reports) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pass the output on until the supervisor has ended; what the driver said last, and how it ended."""
    last: dict[str, dict[str, Any]] = {"end": {}, "ended": {}}
    for event in effect.events(FLUSH_SECONDS):
        if event is not None and event["event"] == "log":
            output.add(str(event.get("stream")), str(event.get("text")))
        elif event is not None and event["event"] == "step":
            output.add("platform", f"{event.get('text')}\n")
        elif event is not None and event["event"] == "host":
            reports.add(event)
        elif event is not None and event["event"] in last:
            last[event["event"]] = event
        reports.flush()
        output.flush()
    return last["end"], last["ended"]


def conclude(end: dict[str, Any], ended: dict[str, Any], masker: Masker, note: str = "") -> dict[str, Any]:
    """The result of a success; raises Ended for everything else. What the driver said counts before how it ended."""
    message = masker.mask(str(end.get("message") or ""))[:2000]
    if end.get("outcome") == "ok":
        said = message + note if message else note.removeprefix("; ")
        return {"message": said} if said else {}
    why = str(ended.get("why"))
    if why in _WHY:
        outcome, text = _WHY[why]
        text = f"{text} ({message})" if message else text
    elif end.get("outcome") == "failed":
        outcome, text = Outcome.FAILED, message or "the driver said no"
    elif end.get("outcome") == "unknown":
        outcome, text = Outcome.LOST, message or _UNKNOWN.format(code=ended.get("code"))
    else:
        outcome, text = Outcome.LOST, _UNKNOWN.format(code=ended.get("code"))
    raise Ended(outcome, text + note)


class Output:
    """The output of one attempt on its way into the database: masked, bounded, in order.

    Waits in memory while the database is away; what is beyond the limit is cut, visibly.
    """

    def __init__(self, deployment_id: int, attempt: int, masker: Masker) -> None:
        self.deployment_id = deployment_id
        self.attempt = attempt
        self.left = get_settings().deployment_log_bytes
        self._maskers = {stream: masker.stream() for stream in ("stdout", "stderr", "platform")}
        self._waiting: deque[tuple[str, str]] = deque()
        self._flushed_at = 0.0
        self._cut = False
        self._why = ""
        #: What is to be said with the outcome, where the log cannot say it.
        self.note = ""

    def add(self, stream: str, text: str) -> None:
        if stream in self._maskers:
            self._queue(stream, self._maskers[stream].feed(text))

    def close(self, is_in_haste: Callable[[], bool] = lambda: False) -> None:
        """Write the rest; while the database is away, go on trying for a while."""
        for stream, masker in self._maskers.items():
            self._queue(stream, masker.close())
        give_up = time.monotonic() + CLOSE_SECONDS
        self.flush(now=True)
        while self._waiting and time.monotonic() < give_up and not is_in_haste():
            time.sleep(FLUSH_SECONDS)
            self.flush(now=True)
        if self._waiting:
            self._lose(self._why)

    def flush(self, *, now: bool = False) -> None:
        """Write what waits, at most every half second; what cannot be written waits on."""
        if not self._waiting or (not now and time.monotonic() - self._flushed_at < FLUSH_SECONDS):
            return
        self._flushed_at = time.monotonic()
        pieces = self._merged()
        try:
            with get_db_session() as session:
                deployments.append_log(session, deployment_id=self.deployment_id, attempt=self.attempt, pieces=pieces)
        except DatabaseUnavailable:
            self._wait(pieces, "the database did not answer")
        except DBAPIError as error:
            why = type(error.orig).__name__
            if isinstance(error.orig, PASSING):  # a full disk may have room again
                self._wait(pieces, why)
            else:  # e.g. the deployment is gone: trying again changes nothing
                self._lose(why)

    def _wait(self, pieces: list[tuple[str, str]], why: str) -> None:
        if why != self._why:
            log.warning("output_waits", deployment_id=self.deployment_id, error=why)
        self._why = why
        self._waiting.extend(pieces)

    def _lose(self, why: str) -> None:
        self.note = f"; a part of the output could not be written ({why})"
        log.warning("output_lost", deployment_id=self.deployment_id, error=why)

    def _queue(self, stream: str, text: str) -> None:
        if not text or self._cut:
            return
        size = len(text.encode("utf-8", "replace"))
        if size > self.left:
            text = text.encode("utf-8", "replace")[: self.left].decode("utf-8", "ignore")
            self._cut = True
        self.left -= size
        self._waiting.append((stream, clean(text) or ""))
        if self._cut:
            limit = get_settings().deployment_log_bytes
            self._waiting.append(("platform", f"\n[output cut here: {limit} bytes is the limit]\n"))

    def _merged(self) -> list[tuple[str, str]]:
        pieces: list[tuple[str, str]] = []
        while self._waiting:
            stream, text = self._waiting.popleft()
            if pieces and pieces[-1][0] == stream and len(pieces[-1][1]) + len(text) < PIECE_CHARACTERS:
                pieces[-1] = (stream, pieces[-1][1] + text)
            else:
                pieces.append((stream, text))
        return pieces
