"""HTTP checks: what one costs with all of its database writes, beside a bare client and Debian's blackbox exporter; and
the scheduler alone, with many checks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from db.connection import get_db_session
from db.service import DatabaseService
from db.services import check_runs
from tasks import checks as tasks_checks
from tests.bench.report import Report
from tests.bench.servers import fresh_database
from tests.conftest import settings_from
from tests.e2e.platform import Platform

#: A server in a process of its own, so that its time is not ours.
_SERVER = """
import asyncio
async def speak(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(speak, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
SECONDS = 5.0
CHECKS = int(os.environ.get("BENCH_CHECKS", "2000"))


def against_others(bench: Platform, report: Report) -> None:
    """Print CPU per check of ours and of others, and the claim rate."""
    report.section(
        "checks: CPU of the prober, its database writes included, for one HTTP check with a fresh connection"
    )
    with fresh_database(bench.stack, "checks"), settings_from({"OPS_PROBE_ALLOW": "127.0.0.1/32"}), _server() as url:
        _add(url, CHECKS)
        ours, rate = _cost(_run_batch)
        report.figure("ours, in batches of 100", f"{1000 * ours:.3f} ms CPU, {rate:.0f} a second")
        session = requests.Session()
        session.headers["Connection"] = "close"
        theirs, rate = _cost(lambda: [session.get(url, timeout=5) for _ in range(20)] and 20)
        report.at_most("ours / requests without any write", ours / theirs, 1.0, f"{1000 * theirs:.3f} ms, {rate:.0f}/s")
        if program := shutil.which("prometheus-blackbox-exporter"):
            exporter = _blackbox(program, url)
            report.at_most("ours / blackbox exporter", ours / exporter, 1.0, f"{1000 * exporter:.3f} ms")
        else:
            report.figure("blackbox exporter", "not installed (Debian's prometheus-blackbox-exporter)")
        claimed, seconds = _claims()
        report.figure(f"claims alone, {CHECKS} checks", f"{claimed / seconds:.0f} a second")


@contextmanager
def _server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
    finally:
        process.kill()
        process.communicate()


def _add(url: str, count: int) -> None:
    with get_db_session() as session:
        service = DatabaseService(session)
        user = service.create_user_with_audit("bench", "bench@example.org")
        for number in range(count):
            service.add_check(f"c{number}", "http", user.id, config={"url": url}, interval_seconds=5)


def _run_batch() -> int:
    """One batch as the tick and a worker do it."""
    with get_db_session() as session:
        batches = check_runs.claim(session)
    for batch, ids in batches.items():
        with get_db_session() as session:
            runs = check_runs.load(session, batch_id=batch, check_ids=ids)
        seen = tasks_checks.look(runs)
        assert all(each.status == "up" for each in seen.values()), seen
        with get_db_session() as session:
            check_runs.record(session, batch_id=batch, runs=runs, seen=seen)
    return sum(map(len, batches.values()))


def _cost(work: Callable[[], int]) -> tuple[float, float]:
    """CPU seconds of this process per check, and checks per second, over some seconds."""
    work()
    cpu, start, done = time.process_time(), time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        done += work()
    return (time.process_time() - cpu) / max(done, 1), done / (time.monotonic() - start)


def _claims() -> tuple[int, float]:
    from sqlalchemy import text

    with get_db_session() as session:
        session.execute(text("UPDATE check_states SET next_run_at = now(), scheduled_at = NULL, batch_id = NULL"))
    claimed, start = 0, time.monotonic()
    while True:
        with get_db_session() as session:
            found = sum(map(len, check_runs.claim(session).values()))
        claimed += found
        if found < check_runs.BATCH:
            return claimed, time.monotonic() - start


def _blackbox(program: str, url: str) -> float:
    """CPU seconds per probe of the exporter's own process."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        config = Path(folder) / "config.yml"
        config.write_text("modules:\n  http_2xx:\n    prober: http\n    timeout: 5s\n")
        log = Path(folder) / "log"
        with log.open("w") as output:
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
    import psutil

    session, end = requests.Session(), time.monotonic() + 10
    while True:
        try:
            session.get(address, timeout=5)
            break
        except requests.ConnectionError:
            assert time.monotonic() < end, "the exporter does not start"
    before, start, done = psutil.Process(pid).cpu_times(), time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        assert "probe_success 1" in session.get(address, timeout=5).text
        done += 1
    after = psutil.Process(pid).cpu_times()
    return (after.user + after.system - before.user - before.system) / done
