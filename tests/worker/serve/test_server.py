"""`ops serve` answers what it should to whom it should, ends soon, and tells nothing more."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from tests.conftest import Database
from tests.worker.serve.conftest import OPS, Server, serving
from worker.serve import connections, doors, health
from worker.server import Serve

TOKEN = "t" * 16 + "-metrics"


def alive(sql, kind: str, seconds: float = 0) -> None:
    sql(
        "INSERT INTO processes (id, kind, name, host, pid, info, seen_at) VALUES (%s, %s, %s, 'h', 1, '{}',"
        " now() - make_interval(secs => %s))",
        str(uuid4()), kind, f"{kind}@h", seconds,
    )  # fmt: skip


def test_without_a_token_metrics_are_for_this_machine_itself(server: Server) -> None:
    assert server.ask("/metrics").status == 200
    for headers in (
        {"X_Forwarded_For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}, {"Via": "1.1 proxy"},
        {"Host": "ops.example.org"}, {"Host": f"127.0.0.1.example.org:{server.port}"}, {"Host": "[::"},
    ):  # fmt: skip
        answer = server.ask("/metrics", **headers)
        assert (answer.status, b"ops_jobs" in answer.body) == (401, False), headers
    assert server.ask("/metrics", Host=f"localhost:{server.port}").status == 200
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as nginx:  # as it passes on what it is asked
        nginx.sendall(f"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n".encode())
        assert b" 401 " in nginx.recv(100)


def test_with_a_token_metrics_are_for_who_sends_it_wherever_from(database: Database) -> None:
    with serving("--host", "0.0.0.0", OPS_METRICS_TOKEN=TOKEN) as server:
        for given in (None, TOKEN, f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer é"):
            headers = {"Authorization": given.encode().decode("latin-1")} if given else {}
            assert server.ask("/metrics", **headers).status == 401, given
        assert server.ask("/metrics", Authorization="Bearer \xff").status == 401
        assert server.ask("/metrics", Authorization=f"Bearer {TOKEN}", X_Forwarded_For="192.0.2.1").status == 200
        assert server.ask("/healthz").status == 200


def test_without_a_token_and_open_to_strangers_metrics_stay_closed(database: Database) -> None:
    """Even to those on this machine who ask by another of its addresses."""
    with serving("--host", "0.0.0.0") as server:
        assert server.ask("/metrics", Host="192.0.2.7").status == 401
        code, remarks = server.stop()
    assert code == 0
    assert "OPS_METRICS_TOKEN is not set" in remarks


def test_health_tells_of_a_silent_beat_and_readiness_of_what_is_missing(server: Server, sql) -> None:
    assert server.ask("/healthz").json == {"status": "ok", "database": "answers", "beat": "silent"}
    answer = server.ask("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "not ready", "because": ["beat", "worker"]})
    alive(sql, "beat")
    alive(sql, "worker", seconds=40)
    time.sleep(1.1)  # an answer is remembered for a second
    assert server.ask("/healthz").json == {"status": "ok", "database": "answers", "beat": "alive"}
    assert server.ask("/readyz").json == {"status": "not ready", "because": ["worker"]}
    alive(sql, "worker")
    sql("SELECT ops_pause('moving')")
    time.sleep(1.1)
    assert server.ask("/readyz").json == {"status": "not ready", "because": ["paused"]}
    sql("SELECT ops_resume()")
    time.sleep(1.1)
    assert (server.ask("/readyz").status, server.ask("/readyz").json) == (200, {"status": "ready"})


def test_without_a_database_it_starts_says_so_and_names_nothing(database: Database) -> None:
    away = "postgresql://secret-role:secret-word@127.0.0.1:1/secret-name"
    with serving(DATABASE_URL=away) as server:
        answer = server.ask("/healthz")
        assert (answer.status, answer.json) == (503, {"status": "failing", "database": "does not answer"})
        assert server.ask("/readyz").json == {"status": "not ready", "because": ["database"]}
        answer = server.ask("/metrics")
        assert (answer.status, answer.text) == (503, "the database does not answer; try again\n")
        code, remarks = server.stop()
    assert code == 0
    assert "secret-word" not in remarks
    assert "Traceback" not in remarks


def test_a_database_that_is_frozen_is_said_not_to_answer_before_who_asks_gives_up(monkeypatch, database) -> None:
    monkeypatch.setattr("worker.server.HEALTH_SECONDS", 0.01)
    thawed = threading.Event()
    serve = Serve()
    serve.health = doors.Remembered(serve.threads, lambda: thawed.wait(60) and health.look(), 1.0)

    async def ask() -> list[web.Response]:
        request = make_mocked_request("GET", "/")
        try:
            return [await serve.healthz(request), await serve.readyz(request)]
        finally:
            thawed.set()

    live, ready = asyncio.run(ask())
    serve.threads.close()
    serve.ping_threads.close()
    assert (live.status, live.text) == (503, '{"status": "failing", "database": "does not answer"}')
    assert (ready.status, ready.text) == (503, '{"status": "not ready", "because": ["database"]}')


def test_every_answer_is_hardened_and_what_is_not_there_is_not_there(server: Server) -> None:
    for path in ("/metrics", "/healthz", "/nothing", "/ping", "/../etc/passwd", "/%2e%2e/", "/static/", "/metrics/"):
        answer = server.ask(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["content-security-policy"].startswith("default-src 'none'"), path
        assert "python" not in answer.headers["server"].lower(), path
    assert server.ask("/nothing").status == 404
    assert server.ask("/metrics", "DELETE").status == 405


def test_more_than_anybody_needs_to_send_is_refused(server: Server) -> None:
    assert server.ask("/healthz", "GET", b"x" * 70_000).status == 413
    assert server.ask("/healthz", X_Long="x" * 5000).status == 400
    assert server.ask("/" + "x" * 5000).status == 400
    assert server.ask("/healthz", **{f"X_{n}": "1" for n in range(100)}).status == 400
    assert server.ask("/healthz").status == 200


def test_who_sends_nothing_or_slowly_is_hung_up_on() -> None:
    """And who is answered is not."""
    watch = connections.Watch()
    quiet, asked = Line(), Line()
    server = Lines([quiet, asked])
    watch.look(server)
    watch._since[quiet] -= connections.QUIET_SECONDS + 1
    watch._since[asked] -= connections.QUIET_SECONDS + 1
    watch._busy[asked] = 1
    watch.look(server)
    assert (quiet.closed, asked.closed) == (True, False)


class Line:
    """What a connection is to its watch."""

    def __init__(self) -> None:
        self.closed = False
        self.transport = None

    def force_close(self) -> None:
        self.closed = True


class Lines:
    def __init__(self, lines: list[Line]) -> None:
        self.connections = lines


def test_of_too_many_connections_the_oldest_quiet_ones_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 3)
    watch, lines = connections.Watch(), [Line() for _ in range(5)]
    for number, line in enumerate(lines):
        watch._since[line] = time.monotonic() - 5 + number
    watch.look(Lines(lines))
    assert [line.closed for line in lines] == [True, True, False, False, False]


def test_connections_never_take_all_the_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be accepted any more is not seen, and no connection would be closed for it."""
    monkeypatch.setattr("resource.getrlimit", lambda _which: (6, 6))
    lines = [Line() for _ in range(5)]
    connections.Watch().look(Lines(lines))
    assert sum(line.closed for line in lines) == 2


@pytest.mark.slow
def test_a_head_that_does_not_come_ends_the_connection(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        slow.settimeout(connections.QUIET_SECONDS * 3)
        assert slow.recv(100) == b""


def test_a_taken_port_is_one_line(database: Database) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*OPS, "serve", "--port", str(port)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 5
    assert done.stderr.splitlines() == [f"error: port {port} is taken", "  try: ops serve --port ANOTHER"]


def test_a_token_that_is_easy_to_guess_is_refused(database: Database) -> None:
    environment = os.environ | {"OPS_METRICS_TOKEN": "short"}
    done = subprocess.run([*OPS, "serve"], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: OPS_METRICS_TOKEN is too short")
    assert "'short'" not in done.stderr


def test_it_ends_when_asked_also_while_somebody_is_connected(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        code, remarks = server.stop()
    assert (code, remarks) == (0, "")


def test_a_bound_lets_a_burst_pass_and_remembers_no_more_keys_than_it_may() -> None:
    limit = doors.Limit(per_second=1, burst=3, most_keys=5)
    assert [limit.admits("a") for _ in range(5)] == [True, True, True, False, False]
    assert limit.admits("b")
    for number in range(50):
        limit.admits(str(number))
    assert len(limit._whole_at) == 5


def test_one_customer_is_one_network() -> None:
    assert doors.network_of("192.0.2.1") == doors.network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert doors.network_of("2001:db8::1") == doors.network_of("2001:db8::ffff%eth0") == "2001:db8::"
    assert doors.network_of(None) == "-"
