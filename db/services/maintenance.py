"""Retention: jobs, logs and audit partitions are kept as long as the settings say, and no longer."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from db.connection import apply_context
from db.models import AuditLog, Deployment, DeploymentLog, Job
from db.repositories import (
    AuditLogRepository,
    LoginLimitRepository,
    MonitoringAlertRepository,
    ScheduleRunRepository,
)
from db.services import check_history
from db.settings import get_settings

#: Rows removed per run and table: a tick stays short; the next one goes on.
BATCH = 5000


def tidy(session: Session) -> dict[str, Any] | None:
    """What was made or removed, by kind; None when nothing was."""
    settings = get_settings()
    apply_context(session)
    schema = getattr(func, AuditLog.__table__.schema or "public")
    done = {
        "partitions_made": session.scalar(select(schema.ops_audit_make_partitions(6))) or 0,
        "partitions_dropped": session.scalar(select(schema.ops_audit_drop_partitions(settings.audit_retention_days)))
        or 0,
        "jobs": _remove_jobs(session, settings.job_retention_days),
        "log_chunks": _remove_logs(session, settings.log_retention_days),
        "login_limits": _remove_limits(session),
        "alerts": MonitoringAlertRepository(session).remove_old(settings.alert_retention_days, BATCH),
        "schedule_runs": ScheduleRunRepository(session).remove_old(settings.job_retention_days, BATCH),
    }
    done |= check_history.tidy(session)
    changed = {kind: count for kind, count in done.items() if count}
    return changed or None


def _remove_jobs(session: Session, days: int) -> int:
    old = (
        select(Job.id)
        .where(Job.finished_at < func.now() - text(f"interval '{int(days)} days'"))
        .order_by(Job.finished_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True, key_share=False)
    )
    return len(session.scalars(delete(Job).where(Job.id.in_(old)).returning(Job.id)).all())


def _remove_logs(session: Session, days: int) -> int:
    ended = (
        select(Deployment.id)
        .where(Deployment.finished_at < func.now() - text(f"interval '{int(days)} days'"))
        .where(select(DeploymentLog.id).where(DeploymentLog.deployment_id == Deployment.id).exists())
        .order_by(Deployment.id)
        .limit(100)
    )
    old = select(DeploymentLog.id).where(DeploymentLog.deployment_id.in_(ended)).limit(BATCH)
    return len(
        session.scalars(delete(DeploymentLog).where(DeploymentLog.id.in_(old)).returning(DeploymentLog.id)).all()
    )


def _remove_limits(session: Session) -> int:
    removed, refused = LoginLimitRepository(session).remove_refilled(BATCH)
    if refused:
        AuditLogRepository(session).add("user.login_throttled", "user", None, {"refused": refused})
    return removed
