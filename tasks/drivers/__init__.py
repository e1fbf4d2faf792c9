"""How to deploy: one program per kind.

A driver is a program: a frozen plan on stdin (one JSON object, opened secrets included), events on stdout (one JSON
object a line), any language. It runs in a process group of its own under ``tasks.supervisor``. Events:

``{"event": "log", "stream": "stdout|stderr|platform", "text": "..."}``
    a piece of output; whole lines where there are any
``{"event": "end", "outcome": "ok|failed", "message": "..."}``
    how it went, exactly once, last

It exits with 0 where the outcome is ok and with 1 where it is failed: that is what is known when its worker has died.

On TERM a driver ends what it started and then itself; it has five seconds.
"""

from __future__ import annotations

import sys

#: What an infrastructure's ``driver`` may be, and the program behind it.
PROGRAMS: dict[str, list[str]] = {
    "command": [sys.executable, "-P", "-m", "tasks.drivers.command"],
}
