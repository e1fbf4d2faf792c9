"""Who is alive, as each process says of itself; written by the ledger's statements."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.errors import NotFound
from db.models import Process
from db.repositories.base import bounded


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
