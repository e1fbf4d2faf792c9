"""Accounts and their secrets."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import func, select, update
from sqlalchemy.orm import defer, selectinload

from db.connection import apply_context
from db.errors import NotFound
from db.models import APIKey, User
from db.repositories.base import Page, Repository
from db.states import Role


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account as a login sees it."""

    id: int
    hashed_password: str | None = field(repr=False)
    is_active: bool


class UserRepository(Repository[User]):
    model = User
    noun = "user"
    list_options = (defer(User.hashed_password),)

    def get_by_username(self, username: str) -> User | None:
        return self.session.scalar(select(User).where(func.lower(User.username) == username.lower()))

    def get_by_email(self, email: str) -> User | None:
        return self.session.scalar(select(User).where(func.lower(User.email) == email.lower()))

    def require_by_username(self, username: str) -> User:
        """Raises NotFound."""
        user = self.get_by_username(username)
        if user is None:
            raise NotFound(f"there is no user {username!r}")
        return user

    def get_with_relations(self, user_id: int) -> User | None:
        """A user with their secrets, whose values are not loaded."""
        return self.get(user_id, selectinload(User.api_keys).options(*APIKeyRepository.list_options))

    def get_credentials(self, username: str) -> Credentials | None:
        """What a login is checked against."""
        query = select(User.id, User.hashed_password, User.is_active).where(
            func.lower(User.username) == username.lower()
        )
        row = self.session.execute(query).one_or_none()
        return Credentials(*row) if row else None

    def lock_active_admins(self) -> list[int]:
        """The ids of all active admins, who stay so until this transaction ends."""
        query = select(User.id).where(User.role == Role.ADMIN, User.is_active).order_by(User.id)
        return list(self.session.scalars(query.with_for_update()))

    def note_login(self, checked: Credentials, renewed: str | None = None) -> User | None:
        """Set the time of the last login, and the hash where there is a better one: the user, or None where the
        account is not any more as it was checked. Whoever edits the user meanwhile is not disturbed by it."""
        apply_context(self.session)
        query = (
            update(User)
            .where(User.id == checked.id, User.is_active, User.hashed_password == checked.hashed_password)
            .values(last_login_at=func.clock_timestamp(), updated_at=User.updated_at)
            .returning(User)
        )
        if renewed is not None:
            query = query.values(hashed_password=renewed)
        return self.session.scalar(query, execution_options={"populate_existing": True})


class APIKeyRepository(Repository[APIKey]):
    model = APIKey
    noun = "secret"
    list_options = (defer(APIKey.encrypted_value, raiseload=True),)

    def get_user_keys(self, user_id: int, *, limit: int = 200) -> list[APIKey]:
        """A user's secrets by name, without their values."""
        query = select(APIKey).where(APIKey.user_id == user_id).options(*self.list_options)
        return list(self.session.scalars(query.order_by(APIKey.service_name, APIKey.key_name).limit(limit)))

    def get_by_name(self, user_id: int, service_name: str, key_name: str, *, with_value: bool = False) -> APIKey | None:
        """A user's secret. Its value is opened only where it is asked for, so that one whose key is lost can still be
        replaced or removed."""
        query = select(APIKey).where(
            APIKey.user_id == user_id, APIKey.service_name == service_name, APIKey.key_name == key_name
        )
        return self.session.scalar(query if with_value else query.options(defer(APIKey.encrypted_value)))

    def list_with_owners(self, *, limit: int = 50, before: int | None = None) -> Page[APIKey]:
        """Everybody's secrets, newest first, without their values."""
        return self.list_(limit=limit, before=before, options=[selectinload(APIKey.user).defer(User.hashed_password)])
