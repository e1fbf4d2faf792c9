"""How a task tells its job's outcome when it is neither plain success nor an exception."""

from __future__ import annotations

from db.states import Outcome


class Ended(Exception):
    """The work ended, and not well: the job gets this outcome and this one line of explanation."""

    def __init__(self, outcome: Outcome, error: str) -> None:
        super().__init__(error)
        self.outcome = outcome
        self.error = error


class NotBegun(Exception):
    """The job's begin was refused: a cancel came in time, or the job is held no more. Start nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
