"""How to deploy: one program per kind.

A driver is a program: a frozen plan as the first line of stdin (a JSON object, opened secrets included), events on
stdout (one JSON object a line), any language. It runs in a process group of its own under ``tasks.supervisor``. Events:

``{"event": "log", "stream": "stdout|stderr|platform", "text": "..."}``
    a piece of output; whole lines where there are any
``{"event": "step", "text": "..."}``
    what comes next, for people
``{"event": "host", "id": 7, "hosts": [{"name": "web1", "status": "running", "batch": 1, ...}]}``
    what is known of hosts from now on (``db.states.HostStatus``; ``release``, ``previous_release`` and ``message``
    where they are known). It is stored at once, and then answered on stdin: ``{"ack": 7}``, or ``{"refuse": 7}`` where
    it cannot be. Before a driver touches a host it says ``running`` of it and waits for that answer: so whatever is
    killed, the host that may have been touched is known
``{"event": "end", "outcome": "ok|failed|unknown", "message": "..."}``
    how it went, exactly once, last; ``unknown``: whether it took effect, nobody can know

It exits with 0 where the outcome is ok, with 1 where it is failed and with 3 where it is unknown: that is what is
known when its worker has died.

On TERM a driver ends what it started and then itself; it has as long as GRACE_SECONDS says.
"""

from __future__ import annotations

import sys

#: What an infrastructure's ``driver`` may be, and the program behind it.
PROGRAMS: dict[str, list[str]] = {
    "command": [sys.executable, "-P", "-m", "tasks.drivers.command"],
    "docker": [sys.executable, "-P", "-m", "tasks.drivers.docker"],
    "ssh": [sys.executable, "-P", "-m", "tasks.drivers.ssh"],
    "webhook": [sys.executable, "-P", "-m", "tasks.drivers.webhook"],
}
#: Between TERM and KILL: what a driver needs to leave hosts as it says they are.
GRACE_SECONDS = {"command": 5.0, "docker": 20.0, "ssh": 20.0, "webhook": 5.0}
