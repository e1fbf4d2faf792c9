"""Errors of ours stay what they are where they are raised in the middle of a statement: none is put around them.

SQLAlchemy's mark for that is set from here, not in `db.errors`: errors are needed by whoever asks `ops` for its help,
and SQLAlchemy takes a quarter of a second. Whatever raises within a statement imports this.
"""

from __future__ import annotations

from sqlalchemy.exc import DontWrapMixin

from db.errors import OpsError

if DontWrapMixin not in OpsError.__mro__:
    OpsError.__bases__ = (DontWrapMixin, Exception)
