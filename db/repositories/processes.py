"""Who is alive, as each process says of itself; written by the ledger's statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Boolean, func, or_, select
from sqlalchemy.orm import Session

from db.errors import NotFound
from db.models import Job, Process
from db.repositories.base import bounded
from db.repositories.stats import ALIVE
from db.states import JobState


class ProcessRepository:
    """Read-only."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def get(self, process_id: str) -> Process | None:
        return self.session.get(Process, process_id)

    def require(self, process_id: str) -> Process:
        """Raises NotFound."""
        found = self.get(process_id)
        if found is None:
            raise NotFound(f"there is no process {process_id!r}")
        return found

    def list_(self, kind: str | None = None, *, seconds: float = 3600, limit: int = 200) -> Sequence[Process]:
        """Those of a kind (worker, beat, relay) or all, seen in the last so many seconds, the newest first."""
        query = select(Process).where(Process.seen_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, seconds))
        if kind is not None:
            query = query.where(Process.kind == kind)
        return self.session.scalars(query.order_by(Process.seen_at.desc()).limit(bounded(limit))).all()

    def list_alive_workers(self, named: str | None = None) -> Sequence[Process]:
        """Those of a name, or of either half of it, or all; seen lately."""
        query = select(Process).where(Process.kind == "worker", Process.seen_at > func.now() - ALIVE)
        if named is not None:
            halves = (func.split_part(Process.name, "@", half) for half in (1, 2))
            query = query.where(or_(Process.name == named, *(half == named for half in halves)))
        return self.session.scalars(query.order_by(Process.name, Process.started_at)).all()

    def list_draining(self, ids: Sequence[str]) -> Sequence[Any]:
        """Of these, those that live: whether each has heard that it drains, and how many jobs run there."""
        running = (
            select(func.count())
            .where(Job.state == JobState.RUNNING, Job.worker == Process.name, Job.worker_host == Process.host)
            .correlate(Process)
            .scalar_subquery()
        )
        heard = func.coalesce(Process.info["draining"].astext.cast(Boolean), False)
        query = select(Process.id, Process.name, heard.label("heard"), running.label("running"))
        query = query.where(Process.id.in_(ids), Process.seen_at > func.now() - ALIVE)
        return self.session.execute(query.order_by(Process.name)).all()
