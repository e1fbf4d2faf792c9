"""What the tests deploy: a program that leaves evidence outside of the platform.

    python effect.py FILE [--gate PATH] [--seconds S] [--stubborn yes] [--spawn yes] [--exit CODE] [--print TEXT]

Appends lines ``word job attempt fence pid seconds`` to FILE with O_APPEND: ``begin``, ``alive`` every 50 ms, ``end``.
Ends when PATH exists, or after S seconds. ``--stubborn`` ignores TERM, ``--spawn`` starts another process that does
as well. Times are of a clock that all processes share.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def main() -> int:
    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    names = [os.environ.get(name, "-") for name in ("OPS_JOB_ID", "OPS_ATTEMPT", "OPS_FENCE")]

    def say(word: str) -> None:
        os.write(file, f"{word} {' '.join(names)} {os.getpid()} {time.monotonic():.4f}\n".encode())

    if "--stubborn" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "--spawn" in options and os.fork() == 0:
        time.sleep(600)
    say("begin")
    if "--print" in options:
        print(os.path.expandvars(options["--print"]), flush=True)
    stop = time.monotonic() + float(options.get("--seconds", "600" if "--gate" in options else "0"))
    while time.monotonic() < stop and not os.path.exists(options.get("--gate", "")):  # noqa: PTH110 - starts fast
        time.sleep(0.05)
        say("alive")
    say("end")
    return int(options.get("--exit", "0"))


if __name__ == "__main__":
    sys.exit(main())
