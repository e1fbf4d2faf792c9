"""States and transitions, pure: what may follow what, and what each word means.

A deployment's status follows its job (the database does it, in the transition's own transaction); the table here is
what services, tests and the schema's CHECKs agree on.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a user may do. Each role may do what those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """True when this role includes ``needed``."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class ActorType(StrEnum):
    """Who acts, as the audit log names it. ``database`` is a statement that said nothing of its actor."""

    USER = "user"
    SYSTEM = "system"
    WORKER = "worker"
    BEAT = "beat"
    DATABASE = "database"


class Environment(StrEnum):
    DEV = "dev"
    STAGING = "staging"
    PRODUCTION = "production"


class Severity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for the lowest."""
        return list(Severity).index(self)


class HostStatus(StrEnum):
    """What a deployment did to one host. PENDING: not reached yet. RUNNING: it may be touched at any moment, by the
    step that the message names. SWITCHED: runs the new release, whose health is not known. HEALTHY: runs it, and said
    so. FAILED: it said no; ``release`` tells what it runs. UNREACHABLE: no connection, nothing was switched.
    UNKNOWN: nobody can tell. ROLLED_BACK: back on what it ran before. SKIPPED: the rollout ended before it.
    """

    PENDING = "pending"
    RUNNING = "running"
    SWITCHED = "switched"
    HEALTHY = "healthy"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"
    ROLLED_BACK = "rolled_back"
    SKIPPED = "skipped"


class AlertStatus(StrEnum):
    """PENDING: entered when something begins to be wrong that must be so for a while; left when it has been, or when it
    is over (then nothing was). FIRING: left when it is over, or by hand. RESOLVED is final: the next time is another
    alert.
    """

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class CheckKind(StrEnum):
    """What a check looks at."""

    HTTP = "http"
    TCP = "tcp"
    TLS = "tls"
    DNS = "dns"
    POSTGRES = "postgres"
    REDIS = "redis"
    CELERY = "celery"
    SYSTEM = "system"
    HEARTBEAT = "heartbeat"


class CheckState(StrEnum):
    """What is known of what a check looks at. UNKNOWN: nothing yet, since it was made or resumed.
    The rules by which one follows another are in :mod:`db.checkstates`.
    """

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"
    PAUSED = "paused"


class CheckStatus(StrEnum):
    """What one run of a check has seen. UNKNOWN: the run itself could not do its work, which says nothing of the
    target. MISSED: runs that the platform has not made, since it was away; one row stands for all of them.
    """

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"
    MISSED = "missed"


class AlertEventKind(StrEnum):
    """What a line of an alert's timeline tells."""

    PENDING = "pending"
    RAISED = "raised"
    CHANGED = "changed"
    ACKNOWLEDGED = "acknowledged"
    ASSIGNED = "assigned"
    NOTE = "note"
    SILENCED = "silenced"
    NOTIFIED = "notified"
    NOT_NOTIFIED = "not_notified"
    RESOLVED = "resolved"


class ChannelKind(StrEnum):
    APPRISE = "apprise"
    WEBHOOK = "webhook"
    SMTP = "smtp"


class Transition(StrEnum):
    """What a notification tells of an alert."""

    RAISED = "raised"
    REPEATED = "repeated"
    RESOLVED = "resolved"


class NotificationState(StrEnum):
    """WAITING: for others of its group; left when a message is made of them. QUEUED: a job sends the message; left when
    that was taken, or refused for good. SENT and FAILED are final, but that enabling the channel tries again.
    """

    WAITING = "waiting"
    QUEUED = "queued"
    SENT = "sent"
    FAILED = "failed"


class JobState(StrEnum):
    """QUEUED: entered by enqueue, retry and rescue; left by claim, cancel and expiry.
    RUNNING: entered by claim; left by finish and rescue. The other three are final.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Outcome(StrEnum):
    """How an attempt ended. FAILED: the work said no. TIMEOUT: it took too long and was stopped.
    LOST: nobody can know whether its effect happened. INTERRUPTED: it was begun, stopped by the platform before its
    end, and is known to be dead. EXPIRED: its time passed before it started.
    """

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ScheduleKind(StrEnum):
    CRON = "cron"
    INTERVAL = "interval"
    ONCE = "once"


class Overlap(StrEnum):
    """What a schedule does while its run before is not over. SKIP: nothing, and says so. QUEUE: its runs line up."""

    SKIP = "skip"
    QUEUE = "queue"


class CatchUp(StrEnum):
    """What becomes of times that passed while nothing fired schedules. NONE: recorded as missed. ONE: the newest of
    them is made up for."""

    NONE = "none"
    ONE = "one"


class RunOutcome(StrEnum):
    """What became of one time of a schedule. ENQUEUED: there is a job. SKIPPED: by its own rules. FAILED: it could not
    be enqueued. The last two say why."""

    ENQUEUED = "enqueued"
    SKIPPED = "skipped"
    FAILED = "failed"


class DeploymentStatus(StrEnum):
    """FAILED: the work said no. ERROR: the platform cannot tell. Both carry an error message."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    ERROR = "error"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled_back"

    @property
    def is_final(self) -> bool:
        return self not in (DeploymentStatus.PENDING, DeploymentStatus.RUNNING)


_D = DeploymentStatus

#: What may follow what. ``running -> pending`` is a job that was put back before its effect began; a retry of an
#: ended deployment puts it back to ``pending`` as well.
DEPLOYMENT_TRANSITIONS: dict[DeploymentStatus, frozenset[DeploymentStatus]] = {
    _D.PENDING: frozenset({_D.RUNNING, _D.CANCELLED, _D.FAILED, _D.ERROR}),
    _D.RUNNING: frozenset({_D.PENDING, _D.SUCCESS, _D.FAILED, _D.ERROR, _D.CANCELLED}),
    _D.SUCCESS: frozenset({_D.ROLLED_BACK}),
    _D.FAILED: frozenset({_D.PENDING}),
    _D.ERROR: frozenset({_D.PENDING}),
    _D.CANCELLED: frozenset({_D.PENDING}),
    _D.ROLLED_BACK: frozenset(),
}


_H = HostStatus

#: What may follow what on one host, within one attempt. ``running`` again: it is switched back. Another attempt starts
#: with ``pending`` from anything but ``running``.
HOST_TRANSITIONS: dict[HostStatus, frozenset[HostStatus]] = {
    _H.PENDING: frozenset({_H.RUNNING, _H.SKIPPED}),
    _H.RUNNING: frozenset({_H.SWITCHED, _H.HEALTHY, _H.FAILED, _H.UNREACHABLE, _H.UNKNOWN, _H.ROLLED_BACK, _H.SKIPPED}),
    _H.SWITCHED: frozenset({_H.RUNNING, _H.HEALTHY, _H.FAILED, _H.UNKNOWN}),
    _H.HEALTHY: frozenset({_H.RUNNING}),
    _H.FAILED: frozenset({_H.RUNNING}),
    _H.UNREACHABLE: frozenset(),
    _H.UNKNOWN: frozenset({_H.RUNNING}),
    _H.ROLLED_BACK: frozenset(),
    _H.SKIPPED: frozenset(),
}


def deployment_status(state: JobState, outcome: Outcome | None) -> DeploymentStatus:
    """The status of a deployment whose job is in ``state``; ``outcome`` counts where the job has ended."""
    match state:
        case JobState.QUEUED:
            return _D.PENDING
        case JobState.RUNNING:
            return _D.RUNNING
        case JobState.SUCCEEDED:
            return _D.SUCCESS
        case JobState.CANCELLED:
            return _D.CANCELLED
        case JobState.FAILED:
            return _D.ERROR if outcome in (Outcome.LOST, Outcome.INTERRUPTED) else _D.FAILED
