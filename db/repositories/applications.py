"""Applications."""

from __future__ import annotations

from sqlalchemy import func, select

from db.errors import NotFound
from db.models import Application
from db.repositories.base import Repository


class ApplicationRepository(Repository[Application]):
    model = Application
    noun = "application"

    def get_by_name(self, name: str) -> Application | None:
        return self.session.scalar(select(Application).where(func.lower(Application.name) == name.lower()))

    def require_by_name(self, name: str) -> Application:
        """Raises NotFound."""
        found = self.get_by_name(name)
        if found is None:
            raise NotFound(f"there is no application {name!r}", hint="ops app list")
        return found
