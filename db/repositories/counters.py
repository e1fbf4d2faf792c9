"""What has been counted, and counting on: each entry of the audit trail once, in the order in which it is sealed."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.models import AuditLog, Counter

#: Upper bounds of what is measured, in seconds; what is longer is counted at infinity.
BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0)
#: So many labels (tasks, actions) per counter are told apart; those that come later are counted under one.
MOST_LABELS = 200
OTHER = "other"

# Entries of the trail are what they are: nobody adds one before those that were counted, since no transaction is open
# that could (as for seals). So each is counted once, by whoever holds the position's row.
_COUNT = """
WITH fresh AS MATERIALIZED (
  SELECT e.xid, e.id, e.action, e.resource_id, e.changes, e.details FROM {schema}.audit_logs e
  WHERE (e.xid, e.id) > (CAST(:xid AS xid8), :entry) AND e.xid < pg_snapshot_xmin(pg_current_snapshot())
  ORDER BY e.xid, e.id LIMIT :limit
), jobs AS (
  SELECT f.action, coalesce(f.details->>'task', '') AS task, f.details FROM fresh f WHERE f.action LIKE 'job.%'
), told (name, label, word, seconds, weight) AS (
  SELECT 'audit_entries', f.action, '', NULL::double precision, 1::bigint FROM fresh f
  UNION ALL
  SELECT 'jobs_enqueued', j.task, '', NULL, 1 FROM jobs j WHERE j.action = 'job.enqueued'
  UNION ALL
  SELECT 'job_wait', j.task, '', {waited}, 1
  FROM jobs j WHERE j.action = 'job.started'
  UNION ALL
  SELECT 'job_duration', j.task, substr(j.action, 5), {lasted}, 1
  FROM jobs j WHERE j.details ? 'duration_seconds' AND j.action <> 'job.late_result'
  UNION ALL
  SELECT 'jobs_finished', j.task, substr(j.action, 5), NULL, 1
  FROM jobs j WHERE j.action IN ('job.succeeded', 'job.failed', 'job.lost', 'job.cancelled', 'job.expired')
  UNION ALL
  SELECT 'notification_dwell', '', n.state, greatest(0, extract(epoch FROM n.finished_at - n.created_at)), 1
  FROM fresh f JOIN {schema}.notifications n
    ON n.id = CASE WHEN f.resource_id ~ '^[0-9]{{1,18}}$' THEN f.resource_id::bigint END
  WHERE f.action = 'notification.updated' AND f.changes->'finished_at' IS NOT NULL AND n.finished_at IS NOT NULL
  UNION ALL
  SELECT 'logins_throttled', '', '', NULL, CAST({refused} AS bigint)
  FROM fresh f WHERE f.action = 'user.login_throttled' AND f.details ? 'refused'
), known AS (
  SELECT DISTINCT name, label FROM {schema}.counters
), new AS (
  SELECT n.name, n.label, row_number() OVER (PARTITION BY n.name ORDER BY n.label)
    + (SELECT count(*) FROM known k WHERE k.name = n.name) AS place
  FROM (SELECT DISTINCT t.name, left(t.label, 200) AS label FROM told t) n
  WHERE NOT EXISTS (SELECT FROM known k WHERE k.name = n.name AND k.label = n.label)
), summed AS (
  SELECT t.name, CASE WHEN n.place > :most THEN :other ELSE left(t.label, 200) END AS label, t.word,
    coalesce(
      (SELECT min(b) FROM unnest(CAST(:bounds AS double precision[])) b WHERE t.seconds <= b), 'Infinity') AS upto,
    sum(t.weight) AS count, coalesce(sum(t.seconds), 0) AS total
  FROM told t LEFT JOIN new n ON n.name = t.name AND n.label = left(t.label, 200)
  GROUP BY 1, 2, 3, 4
), added AS (
  INSERT INTO {schema}.counters AS c (name, label, word, upto, count, total)
  SELECT name, label, word, upto, count, total FROM summed ORDER BY 1, 2, 3, 4
  ON CONFLICT (name, label, word, upto) DO UPDATE SET count = c.count + excluded.count, total = c.total + excluded.total
), moved AS (
  UPDATE {schema}.counter_position p SET xid = f.xid, entry_id = f.id
  FROM (SELECT xid, id FROM fresh ORDER BY xid DESC, id DESC LIMIT 1) f
)
SELECT count(*) FROM fresh
"""


def _number(value: str) -> str:
    """A number of the trail, where it is one: whoever runs the platform may write entries of any form."""
    return (
        f"coalesce(CASE WHEN jsonb_typeof({value}) = 'number' THEN greatest(0, least(({value})::numeric, 1e9)) END, 0)"
        "::double precision"
    )


_NUMBERS = {
    "waited": _number("j.details->'waited_seconds'"),
    "lasted": _number("j.details->'duration_seconds'"),
    "refused": _number("f.details->'refused'"),
}


class CounterRepository:
    def __init__(self, session: Session) -> None:
        self.session = session
        self._schema = AuditLog.__table__.schema or "public"

    def list_(self) -> Sequence[Counter]:
        """All of them; there are some thousands at most."""
        query = select(Counter).order_by(Counter.name, Counter.label, Counter.word, Counter.upto)
        return self.session.scalars(query).all()

    def lock(self) -> tuple[int, int] | None:
        """The position, held until the end of the transaction; None while somebody else counts. After a restore into
        another cluster, whose transactions are numbered anew, it begins where this one is."""
        row = self.session.execute(
            text(
                f"""UPDATE {self._schema}.counter_position SET
                  xid = least(xid, pg_snapshot_xmax(pg_current_snapshot())),
                  entry_id = CASE WHEN xid > pg_snapshot_xmax(pg_current_snapshot()) THEN 0 ELSE entry_id END
                WHERE id IN (SELECT id FROM {self._schema}.counter_position FOR UPDATE SKIP LOCKED)
                RETURNING xid::text, entry_id"""  # noqa: S608 - a name that settings have checked
            )
        ).one_or_none()
        return None if row is None else (int(row[0]), int(row[1]))

    def count(self, after: tuple[int, int], limit: int) -> int:
        """Count up to so many entries after a position (of :meth:`lock`); answers how many there were."""
        statement = text(_COUNT.format(schema=self._schema, **_NUMBERS))
        given = {
            "xid": str(after[0]), "entry": after[1], "limit": limit, "most": MOST_LABELS, "other": OTHER,
            "bounds": list(BOUNDS),
        }  # fmt: skip
        return int(self.session.scalar(statement, given) or 0)
