"""Attempts to log in, counted: who may try again, and when."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import case, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import LoginLimit

#: An account is known at an address for so long after a login from there.
KNOWN = timedelta(days=30)
#: Refusals of one key are told of in the audit trail at most this often.
TELL_EVERY = timedelta(minutes=1)


class LoginLimitRepository:
    """Rows by key, in one session. Take several keys in their order: two who take them otherwise could deadlock."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def get(self, key: str) -> LoginLimit | None:
        return self.session.get(LoginLimit, key)

    def list_(self, *, limit: int = 50) -> list[LoginLimit]:
        """The keys with the most attempts used up."""
        return list(self.session.scalars(select(LoginLimit).order_by(LoginLimit.refills_at.desc()).limit(limit)))

    def take(self, key: str, at_once: int, every: timedelta) -> bool:
        """Use up one attempt: False when none is left. Of several at once each counts, since they wait for the row."""
        first = insert(LoginLimit).values(key=key, refills_at=func.now() + every)
        taken = first.on_conflict_do_update(
            index_elements=[LoginLimit.key],
            set_={"refills_at": func.greatest(LoginLimit.refills_at, func.now()) + every},
            where=LoginLimit.refills_at <= func.now() + every * (at_once - 1),
        )
        return self.session.scalar(taken.returning(literal(True))) is not None

    def give_back(self, key: str, every: timedelta) -> None:
        """An attempt that was a success counts no more."""
        query = update(LoginLimit).where(LoginLimit.key == key).values(refills_at=LoginLimit.refills_at - every)
        self.session.execute(query, execution_options={"synchronize_session": False})

    def succeed(self, key: str) -> None:
        """All attempts are there again, and the account is known here."""
        query = update(LoginLimit).where(LoginLimit.key == key)
        query = query.values(refills_at=func.now(), succeeded_at=func.now())
        self.session.execute(query, execution_options={"synchronize_session": False})

    def is_known(self, key: str) -> bool:
        query = select(LoginLimit.key).where(LoginLimit.key == key, LoginLimit.succeeded_at > func.now() - KNOWN)
        return self.session.scalar(query) is not None

    def wait(self, key: str, at_once: int, every: timedelta) -> timedelta:
        """How long until the next attempt."""
        query = select(LoginLimit.refills_at - every * (at_once - 1) - func.now()).where(LoginLimit.key == key)
        return self.session.scalar(query) or timedelta(0)

    def count_refusal(self, key: str) -> int | None:
        """How many refusals there were since they were last told of, where it is time to tell of them; else None."""
        silent = LoginLimit.told_at > func.now() - TELL_EVERY
        row = self.session.execute(
            select(LoginLimit.refused, silent.label("silent")).where(LoginLimit.key == key).with_for_update()
        ).one_or_none()
        if row is None:
            return 1
        told = {} if row.silent else {"told_at": func.now()}
        query = update(LoginLimit).where(LoginLimit.key == key)
        self.session.execute(query.values(refused=row.refused + 1 if row.silent else 0, **told))
        return None if row.silent else row.refused + 1

    def remove_refilled(self, limit: int) -> tuple[int, int]:
        """Remove what tells nothing any more: how many rows, and how many refusals they had not told of."""
        long_ago = func.coalesce(LoginLimit.succeeded_at, LoginLimit.refills_at) < case(
            (LoginLimit.succeeded_at.is_(None), func.now()), else_=func.now() - KNOWN
        )
        quiet = func.coalesce(LoginLimit.told_at, LoginLimit.refills_at) < func.now() - TELL_EVERY
        old = (
            select(LoginLimit.key)
            .where(LoginLimit.refills_at < func.now(), long_ago, quiet)
            .order_by(LoginLimit.refills_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        gone = self.session.scalars(
            delete(LoginLimit).where(LoginLimit.key.in_(old)).returning(LoginLimit.refused),
            execution_options={"synchronize_session": False},
        ).all()
        return len(gone), sum(gone)
