"""Infrastructure."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import defer

from db.errors import NotFound
from db.models import Infrastructure
from db.repositories.base import Repository


class InfrastructureRepository(Repository[Infrastructure]):
    model = Infrastructure
    noun = "infrastructure"
    list_options = (defer(Infrastructure.encrypted_settings, raiseload=True),)

    def get_by_name(self, name: str) -> Infrastructure | None:
        return self.session.scalar(select(Infrastructure).where(func.lower(Infrastructure.name) == name.lower()))

    def require_by_name(self, name: str) -> Infrastructure:
        """Raises NotFound."""
        found = self.get_by_name(name)
        if found is None:
            raise NotFound(f"there is no infrastructure {name!r}", hint="ops infra list")
        return found
