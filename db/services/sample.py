"""The first admin, and the rows that the documentation's examples use."""

from __future__ import annotations

import re

from sqlalchemy import func, select

from db.connection import get_db_session
from db.models import Application, Infrastructure, User
from db.repositories import UserRepository
from db.services import applications, infrastructure, users
from db.states import Role


def first_admin(name: str) -> str:
    """Make the acting user an admin where there is no admin yet; answers an admin's name."""
    with get_db_session(action="ops db init") as session:
        found = session.scalar(select(User.username).where(User.role == Role.ADMIN, User.is_active).limit(1))
        mine = UserRepository(session).get_by_username(name)
        if found is not None:
            return mine.username if mine is not None and mine.role is Role.ADMIN else found
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            name = "admin"
        return users.create(session, username=name, email=f"{name}@localhost.localdomain", role=Role.ADMIN).username


def add_samples() -> None:
    """User `admin`, and one application and one infrastructure, which have the id 1 in a fresh database."""
    with get_db_session(action="ops db init --sample") as session:
        admin = UserRepository(session).get_by_username("admin") or users.create(
            session, username="admin", email="admin@example.com", role=Role.ADMIN
        )
        if not session.scalar(select(func.count()).select_from(Application)):
            applications.register(session, name="sample", command=["/bin/sh", "-c", "echo deploying $OPS_VERSION"])
        if not session.scalar(select(func.count()).select_from(Infrastructure)):
            infrastructure.register(session, name="local", owner_id=admin.id)
