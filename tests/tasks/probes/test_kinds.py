"""Every kind but http against the real thing: sockets, certificates, a DNS server, Valkey, PostgreSQL, this host."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import redis

from db.heartbeats import deadline
from db.probes import HeartbeatCheck
from db.states import CheckStatus
from tests.tasks.probes.conftest import answering, look, serving

UP, DEGRADED, DOWN, UNKNOWN = CheckStatus.UP, CheckStatus.DEGRADED, CheckStatus.DOWN, CheckStatus.UNKNOWN


def greeting(sock):
    sock.sendall(b"220 hello\r\n")
    sock.sendall(b"250 " + sock.recv(100).upper())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, UP),
        ({"expect": "^220 "}, UP),
        ({"send": "ehlo\r\n", "expect": "250 EHLO"}, UP),
        ({"send": "quit\r\n", "expect": "never"}, DOWN),
    ],
)
def test_tcp_connects_and_speaks(config, expected):
    with serving(greeting) as server:
        seen = look("tcp", {"host": "127.0.0.1", "port": server.port} | config)
    assert seen.status is expected


def test_tcp_reads_no_more_than_it_looks_at():
    def endless(sock):
        while True:
            sock.sendall(b"x" * 65536)

    with serving(endless) as server:
        seen = look("tcp", {"host": "127.0.0.1", "port": server.port, "expect": "needle"})
    assert (seen.status, seen.message) == (DOWN, "the answer is not what is expected")


@pytest.mark.parametrize(("days", "expected"), [(90, UP), (10, DEGRADED), (2, DOWN), (-1, DOWN)])
def test_tls_looks_at_the_days_that_are_left(certificates, days, expected):
    with serving(answering(), certificates(days)) as server:
        config = {"host": "127.0.0.1", "port": server.port, "verify": False, "down_days": 5}
        seen = look("tls", config)
        untrusted = look("tls", config | {"verify": True})
    assert seen.status is expected
    assert seen.facts["certificate_days"] == pytest.approx(days, abs=0.1)
    assert untrusted.message.startswith("its certificate is not trusted")


@pytest.fixture
def resolver() -> Iterator[tuple[int, dict]]:
    """A DNS server: its port, and the records that it answers with; ``None`` for a name: no answer at all."""
    zone: dict[tuple[str, str], list[str] | None] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, peer = sock.recvfrom(65535)
                if data == b"stop":
                    return
                query = dns.message.from_wire(data)
                (asked,) = query.question
                kind = dns.rdatatype.to_text(asked.rdtype)
                found = zone.get((str(asked.name), kind), [])
                if found is None:
                    continue
                answer = dns.message.make_response(query)
                if found:
                    answer.answer.append(dns.rrset.from_text(asked.name, 60, "IN", kind, *found))
                elif not any(name == str(asked.name) for name, _ in zone):
                    answer.set_rcode(dns.rcode.NXDOMAIN)
                sock.sendto(answer.to_wire(), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1], zone
        finally:
            sock.sendto(b"stop", sock.getsockname())
            thread.join()


def test_dns_looks_at_records(resolver):
    port, zone = resolver
    zone["example.org.", "A"] = ["192.0.2.1", "192.0.2.2"]
    zone["example.org.", "MX"] = ["10 Mail.example.org."]
    zone["silent.example.org.", "A"] = None

    def ask(name="example.org", record="A", **config):
        return look(
            "dns", {"name": name, "record": record, "resolver": "127.0.0.1", "port": port} | config, timeout=1.5
        )

    assert ask().facts == {"records": ["192.0.2.1", "192.0.2.2"]}
    assert ask(expect=["192.0.2.2"]).status is UP
    assert ask(expect=["192.0.2.9"]).message == "among its A records is no '192.0.2.9'"
    assert ask(record="MX", expect=["10 mail.example.org"]).status is UP
    assert ask(record="TXT").message == "it has no TXT record"
    assert ask(name="nowhere.example.org").message == "there is no such name"
    assert ask(name="silent.example.org").message == "the resolver does not answer"


def test_redis_is_asked_with_its_password_and_for_its_memory(stack):
    with (
        redis.Redis(unix_socket_path=str(stack.valkey.socket_path)) as client,
        carried(client.connection_pool) as port,
    ):
        config = {"host": "127.0.0.1", "port": port}
        assert look("redis", config).status is UP
        client.execute_command("ACL", "SETUSER", "probe", "on", ">s3cret-pass", "+ping", "+info")
        try:
            with_password = config | {"user": "probe", "password": "a/b"}
            assert look("redis", with_password, secrets={"password": "s3cret-pass"}).status is UP
            wrong = look("redis", with_password, secrets={"password": "wrong-pass"})
            assert (wrong.status, wrong.message) == (DOWN, "it answers with an error: 'WRONGPASS'")
            client.config_set("maxmemory", 10 * client.info("memory")["used_memory"])
            asked = with_password | {"max_memory_percent": 1}
            assert look("redis", asked, secrets={"password": "s3cret-pass"}).status is DEGRADED
        finally:
            client.config_set("maxmemory", 0)
            client.execute_command("ACL", "DELUSER", "probe")


@pytest.mark.parametrize("said", [b"$99999999999\r\n", b"+" + b"x" * 200_000, b"HTTP/1.1 200 OK\r\n", b"$5\r\nab"])
def test_what_is_no_redis_server_is_down(said):
    def speak(sock):
        sock.recv(1000)
        sock.sendall(said)

    with serving(speak) as server:
        assert look("redis", {"host": "127.0.0.1", "port": server.port}).status is DOWN


@pytest.fixture
def relay(stack) -> Iterator[int]:
    """The tests' PostgreSQL listens on a socket in the file system only; this carries it to a port."""
    with carried_socket(f"{stack.run_dir}/.s.PGSQL.5432") as port:
        yield port


@contextmanager
def carried(pool) -> Iterator[int]:
    """A port of the server that a client's pool is for."""
    path = pool.connection_kwargs.get("path")
    if path is None:
        yield pool.connection_kwargs["port"]
    else:
        with carried_socket(path) as port:
            yield port


@contextmanager
def carried_socket(path: str) -> Iterator[int]:
    def carry(sock: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as there:
            there.connect(path)
            back = threading.Thread(target=_copy, args=(there, sock))
            back.start()
            _copy(sock, there)
            there.shutdown(socket.SHUT_WR)
            back.join()

    with serving(carry) as server:
        yield server.port


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass


def test_postgres_is_asked_in_a_transaction_that_only_reads(relay, database):
    def ask(query=None, expect=None, **config):
        base = {"host": "127.0.0.1", "port": relay, "database": database.name, "user": "postgres", "sslmode": "disable"}
        return look("postgres", base | {"query": query, "expect": expect} | config)

    assert ask().status is UP, ask().message
    assert ask("SELECT 1 + 1", "2").status is UP
    assert ask("SELECT 1 + 2", "2").message == "the query answers '3'"
    assert ask("SELECT nothing").message == "the query fails: UndefinedColumn (42703)"
    for writes in (
        "CREATE TABLE t (x int)",
        "SELECT 1; DROP TABLE users",
        "SELECT set_config('transaction_read_only', 'off', false), ops_audit('a', 'b', 'c')",
        "COMMIT; CREATE TABLE t (x int)",
    ):
        assert ask(writes).status is DOWN
    with database.connect() as plain:
        assert plain.execute("SELECT count(*) FROM audit_logs WHERE action = 'a'").fetchone() == (0,)
    slow = look("postgres", {"host": "127.0.0.1", "port": relay, "user": "postgres", "sslmode": "disable",
                             "query": "SELECT pg_sleep(60)"}, timeout=1)  # fmt: skip
    assert slow.status is DOWN
    assert ask(user="nobody").status is DOWN


def test_postgres_is_not_told_who_this_worker_is(certificates, tmp_path, monkeypatch):
    """Whoever adds a check may have a server of his own ask for a certificate, or have the platform's let it in."""
    context = certificates(33)
    own = tmp_path / "own.pem"
    own.write_bytes((certificates.folder / "33.pem").read_bytes())
    own.chmod(0o600)
    context.load_verify_locations(own)
    context.verify_mode = ssl.CERT_OPTIONAL
    shown = []

    def speak(sock):
        assert sock.recv(8)[4:] == (80877103).to_bytes(4, "big")  # TLS is wanted
        sock.sendall(b"S")
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(8)
            shown.append(tls.getpeercert())

    for name in ("PGSSLCERT", "PGSSLKEY"):
        monkeypatch.setenv(name, str(own))
    with serving(speak) as server:
        config = {"host": "127.0.0.1", "port": server.port, "user": "ops_app", "sslmode": "require"}
        assert look("postgres", config).status is DOWN
    assert shown == [None]


@pytest.mark.parametrize(
    ("config", "known", "expected"),
    [
        ({}, {}, UP),
        ({"min_workers": 2}, {}, DOWN),
        ({"max_due": 5}, {"due": 6}, DEGRADED),
        ({"max_age_seconds": 30}, {"age_seconds": 31.0}, DEGRADED),
    ],
)
def test_celery_judges_what_the_ledger_knows(config, known, expected):
    base = {"workers": 1, "due": 0, "age_seconds": 0.0}
    assert look("celery", {"queue": "deployments"} | config, known=base | known).status is expected


@pytest.mark.parametrize("metric", ["cpu", "memory", "disk", "load"])
def test_system_measures_this_host(metric):
    seen = look("system", {"metric": metric, "down_above": 1000})
    assert seen.status is UP
    assert 0 <= seen.facts["current_value"] <= 1000
    assert seen.facts["threshold_value"] == 1000
    low = look("system", {"metric": "memory", "degraded_above": 0.001, "down_above": 1000})
    assert (low.status, low.facts["threshold_value"]) == (DEGRADED, 0.001)


def test_a_file_system_that_hangs_holds_up_no_other_check_of_the_batch(monkeypatch):
    goes_on, ended = threading.Event(), []

    def hang(path):
        goes_on.wait(60)
        ended.append(path)

    monkeypatch.setattr("psutil.disk_usage", hang)
    try:
        seen = look("system", {"metric": "disk", "path": "/mnt"}, timeout=0.2)
        assert (seen.status, ended) == (DOWN, [])
    finally:
        goes_on.set()


NOW = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)


def heartbeat(beat: timedelta | None, *, failed: bool = False, since: timedelta = timedelta(days=1), **config):
    known = {
        "now": NOW, "since": NOW - since, "beat_at": None if beat is None else NOW - beat, "failed": failed,
        "started_at": None,
    }  # fmt: skip
    return look("heartbeat", {"period_seconds": 60, "grace_seconds": 10} | config, known=known)


def test_a_heartbeat_is_down_when_its_period_and_grace_are_over():
    assert heartbeat(timedelta(seconds=69)).status is UP
    assert heartbeat(timedelta(seconds=70)).message == "it has not reported in time; due by 2026-03-28 12:00:00 UTC"
    assert heartbeat(timedelta(seconds=1), failed=True).message == "it reported that it failed"
    assert heartbeat(None, since=timedelta(seconds=5)).status is UNKNOWN
    assert heartbeat(None).message.startswith("it has never reported")
    assert heartbeat(timedelta(seconds=9)).due_at == NOW + timedelta(seconds=61)


def test_a_heartbeat_that_could_not_report_may_do_so_for_its_grace_and_no_longer():
    back = {"since": timedelta(seconds=4)}
    assert heartbeat(timedelta(seconds=90), **back).status is UP
    assert heartbeat(timedelta(seconds=90), **back).due_at == NOW + timedelta(seconds=6)
    assert heartbeat(timedelta(seconds=30), **back).due_at == NOW + timedelta(seconds=40), "no sooner than it had to"
    late = heartbeat(timedelta(seconds=90), since=timedelta(seconds=10))
    assert late.message == "it has not reported in time; due by 2026-03-28 12:00:00 UTC"


def test_cron_lines_are_read_where_clocks_change():
    """On 2026-03-29 there is no 02:30 in Berlin: cron runs it when the clock has gone on."""
    config = HeartbeatCheck(cron="30 2 * * *", timezone="Europe/Berlin", grace_seconds=60)
    normal = deadline(config, datetime(2026, 3, 27, 2, 0, tzinfo=UTC))
    assert normal == datetime(2026, 3, 28, 1, 31, tzinfo=UTC)
    gap = deadline(config, normal)
    assert datetime(2026, 3, 29, 1, 0, tzinfo=UTC) <= gap <= datetime(2026, 3, 29, 1, 31, tzinfo=UTC)
    after = deadline(config, gap)
    assert after == datetime(2026, 3, 30, 0, 31, tzinfo=UTC)
