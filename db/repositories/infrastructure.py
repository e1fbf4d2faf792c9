"""Infrastructure."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import defer, selectinload

from db.errors import NotFound
from db.models import Infrastructure, User
from db.repositories.base import Repository


class InfrastructureRepository(Repository[Infrastructure]):
    model = Infrastructure
    noun = "infrastructure"
    list_options = (defer(Infrastructure.encrypted_settings, raiseload=True),)

    def get_with_relations(self, infrastructure_id: int) -> Infrastructure | None:
        """An infrastructure with its owner; its encrypted settings are not opened."""
        owner = selectinload(Infrastructure.owner).defer(User.hashed_password)
        return self.get(infrastructure_id, owner, *self.list_options)

    def get_user_infrastructure(
        self, owner_id: int, *, limit: int = 50, before: int | None = None
    ) -> Sequence[Infrastructure]:
        """What a user owns, newest first."""
        return self.list_(Infrastructure.owner_id == owner_id, limit=limit, before=before).items

    def get_by_name(self, name: str) -> Infrastructure | None:
        return self.session.scalar(select(Infrastructure).where(func.lower(Infrastructure.name) == name.lower()))

    def require_by_name(self, name: str) -> Infrastructure:
        """Raises NotFound."""
        found = self.get_by_name(name)
        if found is None:
            raise NotFound(f"there is no infrastructure {name!r}", hint="ops infra list")
        return found
