"""The relay: nothing that the database refuses keeps it from the rest of its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

import pytest

from db.ledger import Bell
from tests.conftest import Database
from worker.relay import Relay

#: `ops relay` whose every round says that it began, and lasts.
ALWAYS_BUSY = """
import time
from worker.cli import platform
from worker.relay import Relay
def tick(self):
    try:
        print("a round", flush=True)
        time.sleep(0.5)
    except Exception:
        print("relay_failed", flush=True)  # as any other failure of a round
Relay.tick = tick
platform.relay()
"""


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_relay_alone_stops_in_the_middle_of_a_round(database: Database, number: signal.Signals) -> None:
    relay = subprocess.Popen(
        [sys.executable, "-c", ALWAYS_BUSY], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert relay.stdout is not None
        assert relay.stdout.readline() == "a round\n"
        relay.send_signal(number)
        said, _ = relay.communicate(timeout=60)
    finally:
        relay.kill()
    assert (relay.returncode, "relay_failed" in said) == (0, False)
