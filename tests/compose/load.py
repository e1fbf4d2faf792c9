"""Runs in a container of its own: asks for deployments again and again, whatever is killed, until /evidence/stop is."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from db.connection import get_db_session
from db.errors import OpsError
from db.service import DatabaseService

#: So many that run beside each other; those of one queue up.
PLACES = 8


def main() -> None:
    stop, every, asked = Path("/evidence/stop"), float(sys.argv[1]), 0
    while not stop.exists():
        try:
            with get_db_session(actor="load") as session:
                DatabaseService(session).create_deployment(1, 1, 1 + asked % PLACES, "v1")
            asked += 1
            time.sleep(every)
        except (OpsError, DBAPIError) as error:  # the database is being killed
            print(type(error).__name__, flush=True)
            time.sleep(0.5)
    print(f"asked {asked}", flush=True)


if __name__ == "__main__":
    main()
