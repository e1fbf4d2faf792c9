"""A way to the Docker engine of another machine, by the worker's own ssh: its keys, its known hosts, its settings.

The SDK's own way needs paramiko, which reads none of these in full, and waits without end for a machine that says
nothing.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Where an engine listens on its machine.
ENGINE = "/var/run/docker.sock"
#: To connect, to log in, and for the way to be open.
OPEN_SECONDS = 20
#: So many times so many seconds without an answer, and the connection is given up.
ALIVE_SECONDS, ALIVE_TIMES = 5, 3


class Closed(OSError):
    """There is no way; the message says why in a few words."""


@contextmanager
def tunnel(destination: str, engine: str = ENGINE) -> Iterator[str]:
    """The ``unix://`` address of a socket here that leads to ``engine`` on ``ssh://[USER@]HOST[:PORT]``. It is open to
    this user alone. Raises Closed."""
    with tempfile.TemporaryDirectory(prefix="ops-engine-") as folder, tempfile.TemporaryFile() as errors:
        socket = Path(folder) / "engine.sock"
        command = [
            "ssh", "-N", "-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes",
            "-o", f"ConnectTimeout={OPEN_SECONDS}", "-o", f"ServerAliveInterval={ALIVE_SECONDS}",
            "-o", f"ServerAliveCountMax={ALIVE_TIMES}", "-o", "ControlPath=none", "-L", f"{socket}:{engine}", "--",
            destination,
        ]  # fmt: skip
        try:
            ssh = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        except FileNotFoundError:
            raise Closed("this worker has no ssh; install Debian's openssh-client") from None
        try:
            give_up = time.monotonic() + OPEN_SECONDS
            while not socket.exists():
                if ssh.poll() is not None:
                    errors.seek(0)
                    raise Closed(_why(errors.read().decode("utf-8", "replace")))
                if time.monotonic() > give_up:
                    raise Closed("ssh does not get through in time")
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            ssh.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                ssh.wait(2)
            ssh.kill()
            ssh.wait()


def _why(said: str) -> str:
    """Without what the other side says, and without its address."""
    for sign, why in (
        ("Host key verification failed", "its ssh host key is not the one that this worker knows"),
        ("Permission denied", "ssh is not let in with the keys of this worker"),
        ("Connection refused", "ssh: connection refused"),
        ("Could not resolve", "ssh: the name has no address"),
    ):
        if sign in said:
            return why
    return "ssh finds no way"
