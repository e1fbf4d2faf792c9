"""What one HTTP check costs with the tools of others: CPU seconds of every process that has a part in it, the checked
server excepted. Each looks at one address over a fresh connection, and writes nothing down."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from tests.bench.target import Target
from tests.e2e.platform import Platform
from tests.e2e.process import until

SECONDS = 4.0
#: Each of them is a process, started anew; so few are enough.
PROCESSES = 200
TASKS = 1500
CHECK_HTTP = Path("/usr/lib/nagios/plugins/check_http")


def spent(pid: int) -> float:
    """CPU seconds of a process and of all that it has started, those that have ended included."""
    root = psutil.Process(pid)
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def by_requests(url: str) -> float:
    """One client in one process, one request after the other, a new connection for each."""
    session = requests.Session()
    session.headers["Connection"] = "close"
    session.get(url, timeout=5, verify=False)
    cpu, start, done = time.process_time(), time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        assert session.get(url, timeout=5, verify=False).ok
        done += 1
    return (time.process_time() - cpu) / done


def by_check_http(url: str) -> float | None:
    """The plugin as Nagios and Icinga start it; None: it is not installed (Debian's monitoring-plugins-basic)."""
    if not CHECK_HTTP.exists():
        return None
    port = url.rstrip("/").rpartition(":")[2]
    command = [str(CHECK_HTTP), "-I", "127.0.0.1", "-p", port, *(["-S"] if url.startswith("https") else [])]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(PROCESSES):
        subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / PROCESSES


@contextmanager
def celery_worker(bench: Platform) -> Iterator[int]:
    """A worker of plain Celery with two processes; its process id."""
    worker = bench.start(
        "plainchecks", "-m", "celery", "-A", "tests.bench.plainchecks", "worker", "-n", "plainchecks@%h", "-c", "2",
        "-Q", "plainchecks", "--loglevel=WARNING", "--without-mingle", "--without-gossip", "--without-heartbeat",
        PLAIN_BROKER_URL=os.environ["PLAIN_BROKER_URL"], PYTHONWARNINGS="ignore",
    )  # fmt: skip
    try:
        yield worker.pid
    finally:
        bench.stop(worker)


def by_celery(worker: int, target: Target, url: str) -> float:
    """A task for each check: the worker's processes, and what sending costs; the broker's own time is left out."""
    from tests.bench.plainchecks import check

    def run(count: int) -> None:
        end = target.answered() + count
        for _ in range(count):
            check.delay(url)
        until(lambda: target.answered() >= end, "all are checked", 120)

    run(20)
    before, own = spent(worker), time.process_time()
    run(TASKS)
    return (spent(worker) - before + time.process_time() - own) / TASKS


def by_blackbox(url: str) -> float | None:
    """The exporter's own process, one probe after the other; None: it is not installed."""
    program = shutil.which("prometheus-blackbox-exporter")
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = Path(folder) / "config.yml"
        config.write_text(
            "modules:\n  http_2xx:\n    prober: http\n    timeout: 5s\n"
            "    http:\n      tls_config:\n        insecure_skip_verify: true\n"
        )
        with (Path(folder) / "log").open("w") as output:
            process = subprocess.Popen(
                [program, f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"],
                stdout=output, stderr=output,
            )  # fmt: skip
            try:
                return _probe(process.pid, f"http://127.0.0.1:{port}/probe?module=http_2xx&target={url}")
            finally:
                process.kill()
                process.wait()


def _probe(pid: int, address: str) -> float:
    session = requests.Session()

    def answers() -> bool:
        try:
            return session.get(address, timeout=5).ok
        except requests.ConnectionError:
            return False

    until(answers, "the exporter answers", 10)
    before, start, done = spent(pid), time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        assert "probe_success 1" in session.get(address, timeout=5).text
        done += 1
    return (spent(pid) - before) / done
