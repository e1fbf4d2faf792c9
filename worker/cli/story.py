"""`ops show`: everything that happened to a thing, in order."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import select

from db.connection import get_db_session
from db.errors import InvalidInput, NotFound
from db.models import AuditLog, Job
from db.repositories import AuditLogRepository, DeploymentRepository, JobRepository
from db.services import rollouts, waiting
from worker.cli import audit
from worker.cli.deployment import host_table, host_view, remark, view
from worker.cli.output import out, when


def tell(text: str) -> None:
    """Raises NotFound, InvalidInput."""
    kind, key = _parse(text)
    with get_db_session() as session:
        head: dict[str, Any] = {"type": kind, "id": key}
        resources = [(kind, key)]
        job: Job | None = None
        if kind == "job":
            job = JobRepository(session).get(UUID(key))
            if job is not None:
                fields = ("task", "queue", "state", "outcome", "error", "result", "worker", "attempt")
                head |= {name: getattr(job, name) for name in fields}
            deployment = DeploymentRepository(session).get_by_job(UUID(key))
            if deployment is not None:
                kind, key = "deployment", str(deployment.id)
        if kind == "deployment":
            found = DeploymentRepository(session).get_with_relations(int(key))
            if found is None:
                raise NotFound(f"there is no deployment {key}", hint="ops deployment list")
            head = {"type": kind} | view(found) | {"message": remark(found)}
            head["hosts"] = [host_view(each) for each in rollouts.list_(session, deployment_id=found.id)]
            job = found.job
            # Every attempt's job, also of retries before the last: its entries name it.
            tasks = select(AuditLog.task_id).where(
                AuditLog.resource_type == kind, AuditLog.resource_id == key, AuditLog.task_id.is_not(None)
            )
            known = {str(task) for task in session.scalars(tasks.distinct())}
            known |= {str(found.job_id)} if found.job_id else set()
            resources = [(kind, key), *(("job", task) for task in sorted(known))]
        entries = [audit.view(entry) for entry in AuditLogRepository(session).story(resources)]
        head["waits"] = waiting.why(session, job) if job is not None else None
    if not entries and job is None and kind != "deployment":
        raise NotFound(f"nothing is known of {text[:80]}")
    _print(head, entries)


def _print(head: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    if out.json:
        out.record(head | {"story": entries})
        return
    hosts = head.pop("hosts", [])
    out.table(None, ("field", "value"), ((name, value) for name, value in head.items() if value is not None))
    host_table(hosts)
    start = entries[0]["at"] if entries else None
    rows = [
        (
            when(entry["at"]),
            f"+{(entry['at'] - start).total_seconds():.3f} s",
            entry["action"],
            entry["actor"],
            audit.say(entry),
        )
        for entry in entries
    ]
    out.table(None, ("at", "after", "what", "who", "details"), rows)


def _parse(text: str) -> tuple[str, str]:
    """Any id as (type, key): ``42``, a UUID, ``alert:3``. Raises InvalidInput."""
    kind, colon, key = text.partition(":")
    if colon and kind.isidentifier() and key:
        if kind == "deployment":
            from worker.cli.ids import deployment_id

            return kind, str(deployment_id(key))
        return (kind, str(_uuid(key))) if kind == "job" else (kind, key)
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return "deployment", text
    return "job", str(_uuid(text))


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(
            f"{text[:60]!r} is no id; give a deployment's number, a job's id, or TYPE:ID such as user:3"
        ) from None
