"""The relay: nothing that the database refuses keeps it from the rest of its work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from db.ledger import Bell
from tests.conftest import Database
from worker.relay import Relay


class Line:
    """A broker that takes everything."""

    def __init__(self) -> None:
        self.rung: list[Bell] = []

    def ring(self, bells: Sequence[Bell]) -> bool:
        self.rung += bells
        return True

    def depths(self, queues: Iterable[str]) -> dict[str, int]:
        return dict.fromkeys(queues, 0)


def test_a_rescue_that_fails_every_time_silences_no_bell(database: Database, sql) -> None:
    """E.g. one dead job whose end somebody's trigger refuses: everybody else's jobs go on."""
    with database.connect("ops_owner") as owner:
        owner.execute("ALTER FUNCTION ops_rescue RENAME TO ops_rescue_that_worked")
    ((job,),) = sql("SELECT id FROM ops_enqueue('tests.task')")
    line = Line()
    relay = Relay(line, "relay@test", kind="relay")  # type: ignore[arg-type]
    relay.tick()
    relay._ledger.close()
    assert [bell.id for bell in line.rung] == [job]
    assert sql("SELECT name FROM processes") == [("relay@test",)]
