"""Plain Celery, as most people write it: what durable jobs are measured against, on the same servers."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from celery import Celery
from celery.signals import worker_process_init
from sqlalchemy import BigInteger, Identity, Text, create_engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

app = Celery("plain", broker=os.environ["PLAIN_BROKER_URL"])
app.conf.update(
    task_ignore_result=True, worker_prefetch_multiplier=4, task_serializer="json", accept_content=["json"],
    task_default_queue="plain", broker_connection_retry_on_startup=True,
)  # fmt: skip
engine = create_engine(os.environ["PLAIN_DATABASE_URL"], pool_size=2)


class Base(DeclarativeBase):
    pass


class PlainJob(Base):
    __tablename__ = "plain_jobs"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class PlainAudit(Base):
    __tablename__ = "plain_audit"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime]
    job_id: Mapped[int] = mapped_column(BigInteger)
    what: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, str]] = mapped_column(JSONB)


@worker_process_init.connect
def _after_fork(**_: object) -> None:
    engine.dispose(close=False)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _audit(job: PlainJob, what: str) -> PlainAudit:
    return PlainAudit(at=_now(), job_id=job.id, what=what, details={"task": job.task, "state": job.state})


def submit(session: Session) -> int:
    """A row and an audit entry, then the message: the usual way, with a gap between the two."""
    job = PlainJob(task="plain.work", state="queued")
    session.add(job)
    session.flush()
    session.add(_audit(job, "enqueued"))
    session.commit()
    work.delay(job.id)
    return job.id


@app.task(name="plain.work")
def work(job_id: int) -> None:
    """Started and finished, each with its audit entry, each in a transaction."""
    with Session(engine) as session:
        job = session.get_one(PlainJob, job_id)
        job.state, job.started_at = "running", _now()
        session.add(_audit(job, "started"))
        session.commit()
        job.state, job.finished_at = "succeeded", _now()
        session.add(_audit(job, "succeeded"))
        session.commit()


@app.task(name="plain.stamp")
def stamp(path: str) -> None:
    """Write down when the body started."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"{time.time()}\n")
