"""`/metrics`: the snapshot in Prometheus' words. Counters are those of the database: restarts and further servers
change nothing of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from db.connection import get_db_session, pool_stats
from db.models import Counter
from db.repositories.counters import BOUNDS
from db.seals import seal_keys
from db.services import metrics
from db.services.metrics import Snapshot
from db.states import CheckState
from tasks.supervisor import now
from worker.config import QUEUES
from worker.schedule import TICKS

Samples = Iterable[tuple[Sequence[str], float]]


def render(accept: str) -> tuple[bytes, str]:
    """The text and its content type, in the format that is asked for. Raises DatabaseUnavailable."""
    encode, content_type = choose_encoder(accept)
    return encode(Collector(*look())), content_type


def look() -> tuple[Snapshot, float]:
    """A snapshot, and how many seconds it took. Raises DatabaseUnavailable."""
    start = now()
    with get_db_session(read_only=True) as session:
        snapshot = metrics.snapshot(session, seal_keys())
    return snapshot, now() - start


class Collector:
    """One snapshot as metric families."""

    def __init__(self, snapshot: Snapshot, seconds: float) -> None:
        self.snapshot = snapshot
        self.seconds = seconds

    def collect(self) -> Iterator[Metric]:
        yield from self._jobs()
        yield from self._counted()
        yield from self._processes()
        yield from self._checks()
        yield from self._alerts()
        yield from self._trail()
        yield from self._database()
        yield from self._encryption()
        yield gauge("ops_build_info", "1; the release that answers.", [((version("ai-manage-ops"),), 1)], "version")
        yield gauge("ops_snapshot_seconds", "How long it took to read all of this.", [((), self.seconds)])

    def _jobs(self) -> Iterator[Metric]:
        queued = {row.queue: row for row in self.snapshot.queued}
        running = {row.queue: row for row in self.snapshot.running}
        queues = sorted({*QUEUES, *queued, *running})
        states = [((q, "queued"), queued[q].queued if q in queued else 0) for q in queues]
        states += [((q, "running"), running[q].running if q in running else 0) for q in queues]
        yield gauge("ops_jobs", "Jobs that have not ended, by queue and state.", states, "queue", "state")
        for name, help_, rows, field in (
            ("ops_jobs_due", "Queued jobs whose time has come.", queued, "due"),
            ("ops_queue_oldest_due_age_seconds", "For how long the oldest due job has waited.", queued, "oldest_due"),
            ("ops_jobs_longest_running_seconds", "For how long the oldest running job runs.", running, "longest"),
            ("ops_leases_overdue", "Running jobs whose lease has run out; rescue looks at them.", running, "overdue"),
        ):
            samples = [((q,), float(getattr(rows[q], field)) if q in rows else 0.0) for q in queues]
            yield gauge(name, help_, samples, "queue")
        yield gauge("ops_ledger_paused", "1 while nothing is started (ops pause).", [((), self.snapshot.paused)])

    def _counted(self) -> Iterator[Metric]:
        found = {name: list(rows) for name, rows in groupby(self.snapshot.counters, lambda row: row.name)}
        for name, counter, help_, labels in (
            ("ops_jobs_enqueued", "jobs_enqueued", "Jobs that were enqueued.", ("task",)),
            ("ops_jobs_finished", "jobs_finished", "Jobs that have ended, by how.", ("task", "end")),
            ("ops_audit_entries", "audit_entries", "Entries written to the audit trail, by action.", ("action",)),
        ):
            samples = [((row.label, row.word)[: len(labels)], row.count) for row in found.get(counter, ())]
            yield count(name, help_, samples, *labels)
        yield histogram(
            "ops_job_wait_seconds", "From when a job was due to its start.", by_label(found.get("job_wait", ())), "task"
        )
        yield histogram(
            "ops_job_duration_seconds", "How long an attempt at a job took, by how it ended.",
            by_label(found.get("job_duration", ())), "task", "end",
        )  # fmt: skip
        yield histogram(
            "ops_notification_dwell_seconds", "From when something was to be told to when it was taken, or refused.",
            ((row.word, "", row) for row in found.get("notification_dwell", ())), "state",
        )  # fmt: skip
        failed = sum(row.count for row in found.get("audit_entries", ()) if row.label == "user.login_failed")
        yield count("ops_logins_failed", "Logins that failed.", [((), failed)])
        throttled = sum(row.count for row in found.get("logins_throttled", ()))
        yield count("ops_logins_throttled", "Logins that had to wait.", [((), throttled)])

    def _processes(self) -> Iterator[Metric]:
        rows = self.snapshot.processes
        alive = [row for row in rows if row.alive]
        kinds = [((kind,), sum(row.kind == kind for row in alive)) for kind in ("worker", "beat", "relay")]
        yield gauge("ops_processes", "Processes that were seen in the last 20 seconds.", kinds, "kind")
        serves = [queue for row in alive if row.kind == "worker" for queue in _listed(row.info.get("queues"))]
        queues = [((queue,), serves.count(queue)) for queue in sorted({*QUEUES, *serves})]
        yield gauge("ops_queue_workers", "Living workers that serve a queue.", queues, "queue")
        at = self.snapshot.at.timestamp()
        # The newest of each name: one that was started again has the name of the one before it.
        seen = {(row.kind, row.name): at - float(row.seen_ago) for row in rows}
        yield gauge(
            "ops_process_last_seen_timestamp_seconds", "When a process last said that it lives, for an hour.",
            seen.items(), "kind", "name",
        )  # fmt: skip
        ticks = [((t.name,), t.last_success_at.timestamp()) for t in self.snapshot.ticks if t.last_success_at]
        yield gauge("ops_tick_last_success_timestamp_seconds", "When a periodic job last succeeded.", ticks, "tick")
        intervals = [((name,), seconds) for name, (_, seconds) in TICKS.items()]
        yield gauge("ops_tick_interval_seconds", "How often a periodic job is due.", intervals, "tick")

    def _checks(self) -> Iterator[Metric]:
        rows = {row.state.value: row for row in self.snapshot.checks}
        states = [((state.value,), rows[state.value].count if state.value in rows else 0) for state in CheckState]
        yield gauge("ops_checks", "Checks, by the state they stand in.", states, "state")
        for name, field, help_ in (
            ("ops_checks_due", "due", "Checks whose time has come and that nobody runs yet."),
            ("ops_checks_late", "late", "Those of them that have waited for more than a minute."),
            ("ops_checks_blind", "blind", "Checks whose last run could see nothing: our error, not the target's."),
        ):
            yield gauge(name, help_, [((), sum(getattr(row, field) for row in rows.values()))])
        oldest = max((float(row.oldest_due) for row in rows.values()), default=0.0)
        yield gauge(
            "ops_checks_oldest_due_age_seconds", "For how long the oldest due check has waited.", [((), oldest)]
        )

    def _alerts(self) -> Iterator[Metric]:
        there = {(row.status.value, row.severity.value): row.count for row in self.snapshot.alerts}
        samples = [
            ((status, severity), there.get((status, severity), 0))
            for status in ("pending", "firing")
            for severity in ("low", "medium", "high", "critical")
        ]
        yield gauge("ops_alerts", "Open alerts.", samples, "status", "severity")
        untold = {row.state.value: row for row in self.snapshot.notifications}
        open_ = [((state,), untold[state].count if state in untold else 0) for state in ("waiting", "queued")]
        yield gauge("ops_notifications", "What is still to be told.", open_, "state")
        oldest = max((float(row.oldest) for row in untold.values()), default=0.0)
        yield gauge("ops_notifications_oldest_age_seconds", "For how long the oldest has waited.", [((), oldest)])

    def _trail(self) -> Iterator[Metric]:
        trail = self.snapshot.trail
        yield gauge("ops_audit_size_bytes", "The audit trail with its indexes.", [((), trail.bytes)])
        yield gauge("ops_audit_rows", "Entries of the trail, by the server's estimate.", [((), trail.entries)])
        yield gauge("ops_audit_months_ahead", "Partitions made for months to come.", [((), trail.months_ahead)])
        if (seals := self.snapshot.seals) is not None:
            most = metrics.MOST_UNSEALED
            yield gauge(
                "ops_audit_unsealed_entries", f"Entries under no seal yet; counted up to {most}.", [((), seals.entries)]
            )
            yield gauge("ops_audit_seal_lag_seconds", "Age of the oldest unsealed entry.", [((), seals.seconds)])

    def _database(self) -> Iterator[Metric]:
        snapshot, pool = self.snapshot, pool_stats()
        connections = [((row.application, row.state), row.count) for row in snapshot.connections]
        yield gauge(
            "ops_database_connections", "The server's connections to this database.", connections, "application",
            "state",
        )  # fmt: skip
        yield gauge("ops_database_connections_limit", "How many it takes.", [((), snapshot.connection_limit)])
        yield gauge("ops_database_size_bytes", "The database on disk.", [((), snapshot.database_bytes)])
        states = [(("in_use",), pool.in_use), (("idle",), pool.idle)]
        yield gauge("ops_pool_connections", "This server's own pool.", states, "state")
        yield gauge("ops_pool_connections_limit", "How many it may open.", [((), pool.limit)])

    def _encryption(self) -> Iterator[Metric]:
        """What workers say of themselves; their counts begin anew when they do."""
        told = [(row.name, row.info["encryption"]) for row in self.snapshot.processes
                if row.alive and isinstance(row.info.get("encryption"), dict)]  # fmt: skip
        for name, field, help_ in (
            ("ops_encryption_operations", "", "Values that a worker sealed or opened."),
            ("ops_encryption_seconds", "_seconds", "Time that took."),
        ):
            samples = [
                ((who, what), _number(said, what + field)) for who, said in told for what in ("sealed", "opened")
            ]
            yield count(name, help_, samples, "process", "operation")
        failures = [((who,), _number(said, "failures")) for who, said in told]
        yield count("ops_encryption_failures", "Values that did not open.", failures, "process")


def gauge(name: str, help_: str, samples: Samples, *labels: str) -> Metric:
    made = GaugeMetricFamily(name, help_, labels=labels)
    for values, value in samples:
        made.add_metric(values, float(value))
    return made


def count(name: str, help_: str, samples: Samples, *labels: str) -> Metric:
    """Its name ends in ``_total`` where it is written."""
    made = CounterMetricFamily(name, help_, labels=labels)
    for values, value in samples:
        made.add_metric(values, float(value))
    return made


def by_label(rows: Iterable[Counter]) -> Iterator[tuple[str, str, Counter]]:
    return ((row.label, row.word, row) for row in rows)


def histogram(name: str, help_: str, rows: Iterable[tuple[str, str, Counter]], *labels: str) -> Metric:
    """Rows of one counter in the order of their labels' values, each after those."""
    made = HistogramMetricFamily(name, help_, labels=labels)
    for series, hit in groupby(rows, lambda row: row[:2]):
        buckets = [row for _, _, row in hit]
        # An upper bound of a release before is kept as it was.
        bounds = sorted({*BOUNDS, *(row.upto for row in buckets), float("inf")})
        upto = [sum(row.count for row in buckets if row.upto <= bound) for bound in bounds]
        named = [
            ("+Inf" if bound == float("inf") else repr(bound), float(n)) for bound, n in zip(bounds, upto, strict=True)
        ]
        made.add_metric(series[: len(labels)], named, sum(row.total for row in buckets))
    return made


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value[:100]] if isinstance(value, list) else []


def _number(said: Mapping[str, Any], name: str) -> float:
    value = said.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
