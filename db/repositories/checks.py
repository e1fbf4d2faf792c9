"""Checks: claim what is due, write what was seen, and the few changes of a standing that people ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import Table, bindparam, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import joinedload

from db.connection import apply_context
from db.errors import NotFound
from db.models import CheckInterval, CheckStanding, MonitoringCheck
from db.repositories.base import Page, Repository
from db.states import CheckKind, CheckState

_INTERVALS = cast("Table", CheckInterval.__table__)
_SCHEMA = MonitoringCheck.__table__.schema or "public"

#: A batch is given up so much later than its message has expired and its slowest run must have ended.
SLACK_SECONDS = 10
#: Runs whose timeouts are within these go into one batch each, in seconds; the last is the longest there is.
QUICK, SLOW, SLOWEST = 5, 15, 60

# Runs that are due, marked as in flight: their scheduled time and batch are what their results must name. While a run
# is in flight `next_run_at` is when it is given up; one that is due *and* in flight never came back. Runs of like
# timeouts go into one batch, so that a slow target holds up few others.
_CLAIM = text(
    f"""WITH due AS (
  SELECT check_id, next_run_at, scheduled_at, batch_id, state FROM {_SCHEMA}.check_states
  WHERE next_run_at <= statement_timestamp() ORDER BY next_run_at LIMIT :limit FOR UPDATE SKIP LOCKED
), claimed AS (
  UPDATE {_SCHEMA}.check_states s SET
    scheduled_at = statement_timestamp(),
    batch_id = CASE WHEN c.timeout_seconds <= {QUICK} THEN CAST(:quick AS uuid) WHEN c.timeout_seconds <= {SLOW}
      THEN CAST(:slow AS uuid) ELSE CAST(:slowest AS uuid) END,
    next_run_at = statement_timestamp() + make_interval(secs => :expires + {SLACK_SECONDS}
      + CASE WHEN c.timeout_seconds <= {QUICK} THEN {QUICK} WHEN c.timeout_seconds <= {SLOW} THEN {SLOW}
        ELSE {SLOWEST} END)
  FROM due d JOIN {_SCHEMA}.monitoring_checks c ON c.id = d.check_id
  WHERE s.check_id = d.check_id
  RETURNING s.check_id, s.batch_id, s.scheduled_at, d.state, d.batch_id AS lost_batch,
    coalesce(d.scheduled_at, d.next_run_at) AS was_due_at,
    CASE WHEN c.kind = 'heartbeat' THEN 0 ELSE
      greatest(floor(extract(epoch FROM statement_timestamp() - coalesce(d.scheduled_at, d.next_run_at))
        / c.interval_seconds), (d.batch_id IS NOT NULL)::int) END::int AS missed
) SELECT * FROM claimed ORDER BY check_id"""  # noqa: S608 - the schema's name is checked by settings
)

# What was seen, and where the checks stand now, of the runs that are still in flight as they were: a late or repeated
# batch, and one whose check was paused, changed or asked for meanwhile, changes nothing. Neither does one that was
# given up, also where nobody has claimed it anew: a worker that stood still must not tell of long ago as of now.
_RECORD = text(
    f"""WITH given AS (
  SELECT * FROM jsonb_to_recordset(:results) AS g(check_id bigint, scheduled_at timestamptz, status text,
    latency_seconds real, message text, facts jsonb, state text, seen text, downs bigint, bads bigint, goods bigint,
    betters bigint, blinds bigint, changes bigint, is_flapping boolean, every float, phase float, retry_in float,
    due_at timestamptz)
), moved AS (
  UPDATE {_SCHEMA}.check_states s SET
    state = g.state, seen = g.seen, downs = g.downs, bads = g.bads, goods = g.goods, betters = g.betters,
    blinds = g.blinds, changes = g.changes, is_flapping = g.is_flapping,
    blind_at = CASE WHEN g.blinds = 0 THEN NULL ELSE coalesce(s.blind_at, statement_timestamp()) END,
    since_at = CASE WHEN s.state = g.state THEN s.since_at ELSE statement_timestamp() END,
    scheduled_at = NULL, batch_id = NULL, last_run_at = g.scheduled_at, last_status = g.status,
    last_latency_seconds = g.latency_seconds, last_message = g.message, last_facts = g.facts,
    next_run_at = CASE
      WHEN s.beat_at > g.scheduled_at THEN statement_timestamp()
      WHEN g.retry_in IS NOT NULL THEN statement_timestamp() + make_interval(secs => g.retry_in)
      WHEN g.due_at IS NOT NULL THEN greatest(g.due_at, statement_timestamp() + interval '1 s')
      ELSE to_timestamp((floor((extract(epoch FROM statement_timestamp())::float - g.phase) / g.every) + 1) * g.every
        + g.phase) END
  FROM given g WHERE s.check_id = g.check_id AND s.scheduled_at = g.scheduled_at AND s.batch_id = :batch
    AND s.next_run_at >= statement_timestamp()
  RETURNING s.check_id
) INSERT INTO {_SCHEMA}.check_results (check_id, at, status, latency_seconds, message, facts)
SELECT g.check_id, g.scheduled_at, g.status, g.latency_seconds, g.message, g.facts
FROM given g JOIN moved USING (check_id)
RETURNING check_id"""  # noqa: S608
).bindparams(bindparam("results", type_=JSONB))

_MISSED = text(
    f"""INSERT INTO {_SCHEMA}.check_results (check_id, at, status, facts)
SELECT g.check_id, g.at - interval '1 us', 'missed', jsonb_build_object('missed', g.missed, 'since', g.since)
FROM jsonb_to_recordset(:missed) AS g(check_id bigint, at timestamptz, missed int, since timestamptz)
ON CONFLICT DO NOTHING"""  # noqa: S608
).bindparams(bindparam("missed", type_=JSONB))

# The open interval ends where the platform was away; until now nothing is known; then it goes on.
_CUT = text(
    f"""WITH given AS (
  SELECT * FROM jsonb_to_recordset(:gaps) AS g(check_id bigint, at timestamptz, since timestamptz, state text)
), ended AS (
  UPDATE {_SCHEMA}.check_intervals i SET ended_at = greatest(g.since, i.started_at) FROM given g
  WHERE i.check_id = g.check_id AND i.ended_at IS NULL AND i.state <> 'unknown' AND g.at > i.started_at
  RETURNING i.check_id, i.ended_at, i.state, g.at
), away AS (
  INSERT INTO {_SCHEMA}.check_intervals (check_id, state, started_at, ended_at)
  SELECT check_id, 'unknown', ended_at, at FROM ended
) SELECT check_id, state, at FROM ended"""  # noqa: S608
).bindparams(bindparam("gaps", type_=JSONB))

# What lies further ahead than it can is of before the clock was set back: due now. A heartbeat's deadline may be any
# time away; it follows from when it reported, which was now at the latest. Reads all rows, so it is for that case only.
_RECALL = text(
    f"""UPDATE {_SCHEMA}.check_states s SET next_run_at = statement_timestamp(),
  beat_since_at = least(s.beat_since_at, statement_timestamp()), beat_at = least(s.beat_at, statement_timestamp()),
  beat_started_at = least(s.beat_started_at, statement_timestamp())
FROM {_SCHEMA}.monitoring_checks c WHERE c.id = s.check_id AND s.next_run_at IS NOT NULL AND CASE
  WHEN s.scheduled_at IS NOT NULL THEN s.scheduled_at > statement_timestamp()
  WHEN c.kind = 'heartbeat' THEN greatest(s.beat_since_at, s.beat_at, s.beat_started_at) > statement_timestamp()
  ELSE s.next_run_at > statement_timestamp()
    + make_interval(secs => greatest(c.interval_seconds, coalesce(c.retry_seconds, 0))) END
RETURNING s.check_id"""  # noqa: S608
)

# Who would have reported while we were away could not: it has its grace anew from now on, once after each report, and
# is asked no sooner. What was late before, or has said that it failed, stays what it was.
_EXCUSE = text(
    f"""UPDATE {_SCHEMA}.check_states s SET beat_since_at = statement_timestamp(),
  next_run_at = statement_timestamp() + make_interval(secs => (c.config ->> 'grace_seconds')::float)
FROM {_SCHEMA}.monitoring_checks c WHERE c.id = s.check_id AND c.kind = 'heartbeat' AND s.state IN ('up', 'unknown')
  AND NOT s.beat_failed AND s.beat_at >= s.beat_since_at AND s.beat_at <= :since
  AND s.next_run_at < statement_timestamp() + make_interval(secs => (c.config ->> 'grace_seconds')::float)
RETURNING s.check_id"""  # noqa: S608
)

_BEAT = text(
    f"""UPDATE {_SCHEMA}.check_states s SET
  beat_at = CASE WHEN :signal = 'start' THEN s.beat_at ELSE statement_timestamp() END,
  beat_failed = CASE WHEN :signal = 'start' THEN s.beat_failed ELSE :signal = 'fail' END,
  beat_started_at = CASE WHEN :signal = 'start' THEN statement_timestamp() ELSE s.beat_started_at END,
  next_run_at = CASE WHEN s.next_run_at IS NULL OR s.scheduled_at IS NOT NULL OR :signal = 'start' THEN s.next_run_at
    ELSE statement_timestamp() END
FROM {_SCHEMA}.monitoring_checks c WHERE c.ping_token = :token AND s.check_id = c.id RETURNING c.id"""  # noqa: S608
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that was claimed. ``missed``: how many runs before it were not made; ``lost_batch``: the batch that never
    came back with the one before."""

    check_id: int
    batch_id: UUID
    scheduled_at: datetime
    state: CheckState
    lost_batch: UUID | None
    was_due_at: datetime
    missed: int


class CheckRepository(Repository[MonitoringCheck]):
    model = MonitoringCheck
    noun = "check"

    def get_by_name(self, name: str) -> MonitoringCheck | None:
        """With its standing."""
        query = select(MonitoringCheck).where(func.lower(MonitoringCheck.name) == name.lower())
        return self.session.scalar(query.options(joinedload(MonitoringCheck.standing)))

    def require_by_name(self, name: str) -> MonitoringCheck:
        """With its standing. Raises NotFound."""
        found = self.get_by_name(name)
        if found is None:
            raise NotFound(f"there is no check {name[:80]!r}", hint="ops check list")
        return found

    def anew(self, check_id: int) -> MonitoringCheck:
        """As the database has it by now, with its standing."""
        query = select(MonitoringCheck).where(MonitoringCheck.id == check_id)
        query = query.options(joinedload(MonitoringCheck.standing)).execution_options(populate_existing=True)
        return self.session.scalars(query).one()

    def search(
        self,
        *,
        state: CheckState | str | None = None,
        kind: CheckKind | str | None = None,
        application_id: int | None = None,
        infrastructure_id: int | None = None,
        label: tuple[str, str] | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> Page[MonitoringCheck]:
        """Checks newest first, each with its standing."""
        asked = {"kind": kind, "application_id": application_id, "infrastructure_id": infrastructure_id}
        where = [getattr(MonitoringCheck, name) == value for name, value in asked.items() if value is not None]
        if state is not None:
            ids = select(CheckStanding.check_id).where(CheckStanding.state == state)
            where.append(MonitoringCheck.id.in_(ids))
        if label is not None:
            where.append(MonitoringCheck.labels[label[0]].astext == label[1])
        return self.list_(*where, limit=limit, before=before, options=(joinedload(MonitoringCheck.standing),))

    def public(self) -> Sequence[MonitoringCheck]:
        """The checks that are for everybody to see, by name, each with its standing."""
        query = select(MonitoringCheck).where(MonitoringCheck.public).order_by(func.lower(MonitoringCheck.name))
        return self.session.scalars(query.options(joinedload(MonitoringCheck.standing))).all()

    def begin(self, check_id: int, due_in: float = 0.0) -> None:
        """The standing of a new check: nothing is known, and it is due, or is in so many seconds."""
        due = func.statement_timestamp() + timedelta(seconds=due_in)
        self.session.execute(insert(CheckStanding).values(check_id=check_id, next_run_at=due))
        self.session.execute(
            insert(CheckInterval).values(
                check_id=check_id, state=CheckState.UNKNOWN, started_at=func.statement_timestamp()
            )
        )

    def claim(self, batches: Sequence[UUID], *, limit: int, expires: float) -> list[Claimed]:
        """Mark runs that are due as in flight, in three batches by their timeouts; ``expires``: seconds for which their
        messages may wait."""
        quick, slow, slowest = batches
        rows = self.session.execute(
            _CLAIM, {"limit": limit, "expires": expires, "quick": quick, "slow": slow, "slowest": slowest}
        )
        return [Claimed(**dict(row) | {"state": CheckState(row["state"])}) for row in rows.mappings()]

    def recall(self) -> int:
        """Make due what waits for a time of before the clock was set back; how many checks that were."""
        return len(self.session.scalars(_RECALL).all())

    def excuse(self, since: datetime) -> int:
        """Give heartbeats that could not report since then their grace anew; how many that were."""
        return len(self.session.scalars(_EXCUSE, {"since": since}).all())

    def add_missed(self, missed: Sequence[Claimed]) -> None:
        """One row per check for all the runs that were not made before this one."""
        rows = [
            {"check_id": m.check_id, "at": m.scheduled_at.isoformat(), "missed": m.missed,
             "since": m.was_due_at.isoformat()}
            for m in missed
        ]  # fmt: skip
        self.session.execute(_MISSED, {"missed": rows})

    def cut_intervals(self, gaps: Sequence[Claimed]) -> None:
        """Nothing is known of the time in which runs were missed."""
        rows = [
            {"check_id": g.check_id, "at": g.scheduled_at.isoformat(), "since": g.was_due_at.isoformat()} for g in gaps
        ]
        ended = self.session.execute(_CUT, {"gaps": rows}).mappings().all()
        if ended:
            again = [{"check_id": row["check_id"], "state": row["state"], "started_at": row["at"]} for row in ended]
            self.session.execute(insert(_INTERVALS), again)

    def take(
        self, batch_id: UUID, check_ids: Sequence[int]
    ) -> tuple[UUID, list[tuple[CheckStanding, MonitoringCheck]]]:
        """Take over the runs of a batch that nobody has taken yet: the name under which they go on, and their
        standings, each with its check. The name in a message is everybody's who reads the broker, and is spent now."""
        taken = uuid4()
        in_flight = CheckStanding.check_id.in_(check_ids), CheckStanding.batch_id == batch_id
        self.session.execute(
            update(CheckStanding).where(*in_flight).values(batch_id=taken),
            execution_options={"synchronize_session": False},
        )
        query = (
            select(CheckStanding, MonitoringCheck)
            .join(MonitoringCheck, MonitoringCheck.id == CheckStanding.check_id)
            .where(CheckStanding.check_id.in_(check_ids), CheckStanding.batch_id == taken)
            .order_by(CheckStanding.check_id)
        )
        found = self.session.execute(query, execution_options={"populate_existing": True})
        return taken, [(standing, check) for standing, check in found]

    def record(self, batch_id: UUID, results: Sequence[Mapping[str, Any]]) -> set[int]:
        """Write what was seen and the new standings; the ids of the checks for which it still counted. ``batch_id``: as
        it was taken."""
        return set(self.session.scalars(_RECORD, {"results": list(results), "batch": batch_id}).all())

    def move_intervals(self, states: Mapping[int, CheckState]) -> None:
        """End the open intervals of these checks now, and begin these, where they differ."""
        now = func.statement_timestamp()
        ended = (
            update(CheckInterval)
            .where(CheckInterval.check_id.in_(states), CheckInterval.ended_at.is_(None))
            # It may have begun before the clock was set back.
            .values(ended_at=func.greatest(now, CheckInterval.started_at))
        )
        self.session.execute(ended, execution_options={"synchronize_session": False})
        rows = [{"check_id": check_id, "state": state} for check_id, state in states.items()]
        self.session.execute(insert(_INTERVALS).values(started_at=now), rows)

    def beat(self, token: UUID, signal: str = "ok") -> int | None:
        """A heartbeat has reported ``ok``, ``fail`` or ``start``: one statement. The check's id, or None where no
        heartbeat has this token. What it means is decided by the check's next run, which is due now."""
        found: int | None = self.session.scalar(_BEAT, {"token": token, "signal": signal})
        return found

    def run_now(self, check_id: int) -> bool:
        """Make a check due. False where it is paused, or a run is in flight already."""
        query = (
            update(CheckStanding)
            .where(
                CheckStanding.check_id == check_id,
                CheckStanding.next_run_at.is_not(None),
                CheckStanding.scheduled_at.is_(None),
            )
            .values(next_run_at=func.statement_timestamp())
            .returning(CheckStanding.check_id)
        )
        return self.session.scalar(query, execution_options={"synchronize_session": False}) is not None

    def pause(self, check_id: int) -> None:
        """The standing of a paused check: a run in flight counts no more."""
        self._reset(check_id, CheckState.PAUSED, None)

    def restart(self, check_id: int, due_in: float = 0.0) -> None:
        """The standing of a check that is resumed, or looks at something else now: as :meth:`begin`."""
        self._reset(check_id, CheckState.UNKNOWN, func.statement_timestamp() + timedelta(seconds=due_in))

    def _reset(self, check_id: int, state: CheckState, due: Any) -> None:
        apply_context(self.session)
        query = (
            update(CheckStanding)
            .where(CheckStanding.check_id == check_id)
            .values(
                state=state, since_at=func.statement_timestamp(), seen=None, downs=0, bads=0, goods=0, betters=0,
                blinds=0, blind_at=None, changes=0, is_flapping=False, scheduled_at=None, batch_id=None,
                next_run_at=due, beat_since_at=func.statement_timestamp(), beat_at=None, beat_failed=False,
                beat_started_at=None,
            )
        )  # fmt: skip
        self.session.execute(query, execution_options={"synchronize_session": False})
        self.move_intervals({check_id: state})
