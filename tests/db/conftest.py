"""What several files here start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from db import preflight
from tests.conftest import Database, settings_from
from tests.db.sealing import BEFORE, write_sealed


@pytest.fixture
def sealed(database: Database) -> Iterator[Callable[[int], None]]:
    """A process of the old key; write so many rows of each kind."""
    with settings_from(BEFORE):
        preflight.check_start(patience=0)
        yield write_sealed
