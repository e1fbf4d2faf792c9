"""The postgres probe against servers that want a password, and against those that want more than an answer."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from db.states import CheckStatus
from tasks.probes.net import tls_context
from tasks.probes.pgwire import MAX_BYTES
from tests.db import test_tls
from tests.db.test_tls import PASSWORD, secured
from tests.e2e.process import until
from tests.tasks.probes.conftest import look, serving
from tests.tasks.probes.test_kinds import carried_socket

__all__ = ["secured"]
needs_tls = test_tls.pytestmark
UP, DOWN, UNKNOWN = CheckStatus.UP, CheckStatus.DOWN, CheckStatus.UNKNOWN
#: What SASLprep changes: a space that does not break, a hyphen that is not seen, a number in one character.
PASSWORDS = ["s3cret-value", "a\u00a0b\u00adc \u2168", "\u0007 not for SASLprep", "naïve пароль"]


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def asks(method: int, body: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", method) + body)


def ask(port: int, *, password: str | None = "s3cret-value", timeout: float = 30.0, **config):
    given = {"host": "127.0.0.1", "port": port, "user": "probe", "sslmode": "disable"}
    if password is not None:
        given["password"] = "db/probe"
    secrets = {} if password is None else {"password": password}
    return look("postgres", given | config, timeout=timeout, secrets=secrets)


@pytest.fixture
def server(stack, database) -> Iterator[int]:
    """The tests' server, where three users have to show a password, each in another way."""
    methods = {"probe_scram": "scram-sha-256", "probe_md5": "md5", "probe_clear": "password"}
    with database.connect("postgres") as root:
        (name,) = root.execute("SHOW hba_file").fetchone()
        rules = Path(name).read_text()
        lines = "".join(f"local all {user} {method}\n" for user, method in methods.items())
        try:
            for user in methods:
                root.execute(f"CREATE ROLE {user} LOGIN")
            reload(database, name, lines + rules)
            with carried_socket(f"{stack.run_dir}/.s.PGSQL.5432") as port:
                yield port
        finally:
            reload(database, name, rules)
            for user in methods:
                root.execute(f"DROP ROLE IF EXISTS {user}")


def reload(database, name: str, rules: str) -> None:
    def loaded():
        with database.connect("postgres") as fresh:
            return fresh.execute("SELECT pg_conf_load_time()").fetchone()

    before = loaded()
    Path(name).write_text(rules)
    with database.connect("postgres") as root:
        root.execute("SELECT pg_reload_conf()")
    until(lambda: loaded() != before, "the server has read its rules")


def set_password(database, user: str, password: str, how: str) -> None:
    with database.connect("postgres") as root:
        root.execute(f"SET password_encryption = '{how}'")
        root.execute("SET client_min_messages = error")  # what it thinks of MD5
        root.execute(f"ALTER ROLE {user} PASSWORD '{password}'")


def test_a_password_is_proved_and_not_given_away(server, database):
    for password in PASSWORDS:
        set_password(database, "probe_scram", password, "scram-sha-256")
        seen = ask(server, user="probe_scram", database=database.name, password=password, query="SELECT 7", expect="7")
        assert seen.status is UP, (password, seen.message)
    set_password(database, "probe_md5", "s3cret-value", "md5")
    assert ask(server, user="probe_md5", database=database.name).status is UP
    for user in ("probe_scram", "probe_md5"):
        wrong = ask(server, user=user, database=database.name, password="not it")
        assert (wrong.status, wrong.message) == (DOWN, "the password is not accepted")
        none = ask(server, user=user, database=database.name, password=None)
        assert (none.status, none.message) == (DOWN, "it asks for a password")
    clear = ask(server, user="probe_clear", database=database.name)
    assert (clear.status, clear.message) == (
        UNKNOWN, "it asks for the password in the clear, which it gets with sslmode=verify-full only",
    )  # fmt: skip


def test_one_row_is_asked_for_however_many_there_are(server, database):
    base = {"user": "postgres", "database": database.name, "password": None}
    many = ask(
        server, query="SELECT repeat('x', 1000) FROM generate_series(1, 3000), generate_series(1, 3000) AS n", **base
    )
    assert many.status is UP, many.message
    assert ask(server, query="SELECT NULL", expect="x", **base).message == "the query answers nothing"
    assert ask(server, query="SELECT WHERE false", expect="x", **base).message == "the query answers nothing"
    large = ask(server, query="SELECT repeat('x', 2000000)", **base)
    assert (large.status, large.message) == (DOWN, f"it sends more than {MAX_BYTES} bytes")
    copied = ask(server, query="COPY (SELECT 1) TO STDOUT", **base)
    assert (copied.status, copied.message) == (DOWN, "the query copies data, which is no value")


def greeted(sock) -> bytes:
    """What the client says at its beginning."""
    return receive(sock, struct.unpack("!i", receive(sock, 4))[0] - 4)


def receive(sock, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise OSError
        data += chunk
    return data


def answer(sock) -> bytes:
    kind, size = struct.unpack("!ci", receive(sock, 5))
    assert kind == b"p"
    return receive(sock, size - 4)


@contextmanager
def hostile(*says: bytes, heard: list[bytes] | None = None) -> Iterator[int]:
    """A server that says this and nothing else, whatever it hears; ``%`` in it stands for the client's own nonce."""

    def speak(sock):
        greeted(sock)
        nonce = b""
        for number, each in enumerate(says):
            if number:
                said = answer(sock)
                if heard is not None:
                    heard.append(said)
                if found := re.search(rb"r=([^,]+)", said):
                    nonce = found[1]
            sock.sendall(each.replace(b"%", nonce))
        sock.recv(1000)

    with serving(speak) as made:
        yield made.port


SASL = asks(10, b"SCRAM-SHA-256\0\0")
READY = asks(0) + message(b"Z", b"I")
SALT = base64.b64encode(b"salt")


def challenge(tail: bytes, nonce_size: int = 24) -> bytes:
    """With room for the client's nonce, which is as long as ours."""
    body = b"r=%" + tail
    return b"R" + struct.pack("!i", len(body) - 1 + nonce_size + 8) + struct.pack("!i", 11) + body


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ((SASL, challenge(b"x,s=" + SALT + b",i=2000000000")), "it asks for more than 600000 rounds of hashing"),
        ((SASL, challenge(b"x,s=" + SALT + b",i=0")), "the answer is not that of a PostgreSQL server"),
        ((SASL, challenge(b"x,s=" + SALT + b",i=4096"), READY), "it does not prove that it knows the password"),
        (
            (SASL, challenge(b"x,s=" + SALT + b",i=4096"), asks(12, b"v=" + SALT) + READY),
            "it does not prove that it knows the password",
        ),
        ((asks(10, b"SCRAM-SHA-256\0\0") + READY,), "it does not prove that it knows the password"),
        ((asks(11, b"r=guess,s=" + SALT + b",i=1"),), "it asks for a proof of who this is that checks cannot give"),
        ((b"R\xff\xff\xff\xff",), "the answer is not that of a PostgreSQL server"),
        ((b"R\x00\x00\x00\x04",), "the answer is not that of a PostgreSQL server"),
        ((b"D\x7f\xff\xff\xff",), f"it sends more than {MAX_BYTES} bytes"),
        ((b"HTTP/1.1 200 OK\r\n\r\n",), f"it sends more than {MAX_BYTES} bytes"),
        ((READY + message(b"Z", b"I") + message(b"D", b"\0") + message(b"Z"),), None),
    ],
)
def test_a_hostile_server_gets_neither_the_password_nor_the_process(says, why):
    heard: list[bytes] = []
    with hostile(*says, heard=heard) as port:
        seen = ask(port, query="SELECT 1")
    assert seen.status in (DOWN, UNKNOWN)
    assert why is None or seen.message == why
    assert b"s3cret-value" not in b"".join(heard)


@pytest.mark.parametrize(
    "piece", [message(b"N", b"x" * 60_000), message(b"S", b"name\0value\0"), message(b"D", b"\0\1" * 9)]
)
def test_a_server_that_never_stops_is_not_listened_to_for_ever(piece):
    def speak(sock):
        greeted(sock)
        while True:
            sock.sendall(piece * 100)

    with serving(speak) as server:
        seen = ask(server.port, timeout=60)
    assert (seen.status, seen.message) == (DOWN, f"it sends more than {MAX_BYTES} bytes")


def test_a_certificate_that_nobody_vouches_for_gets_no_password(certificates):
    heard = []
    context = certificates(33)

    def speak(sock):
        assert greeted(sock) == struct.pack("!i", 80_877_103)
        sock.sendall(b"S")
        with context.wrap_socket(sock, server_side=True) as tls:
            greeted(tls)
            tls.sendall(asks(3))
            heard.append(tls.recv(1000))

    with serving(speak) as server:
        assert ask(server.port, sslmode="require").status is UNKNOWN
        assert ask(server.port, sslmode="prefer").status is UNKNOWN
        assert ask(server.port, sslmode="verify-full").message.startswith("its certificate is not trusted")
    assert heard == [b"", b""]


def test_what_is_put_in_before_tls_begins_is_not_taken_for_what_comes_inside(certificates):
    context = certificates(33)

    def speak(sock):
        greeted(sock)
        sock.sendall(b"S" + READY)
        context.wrap_socket(sock, server_side=True).close()

    with serving(speak) as server:
        seen = ask(server.port, sslmode="require")
    assert (seen.status, seen.message) == (DOWN, "no secure connection")


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_no_tls_is_no_way_around_it(mode):
    def speak(sock):
        greeted(sock)
        sock.sendall(b"N")
        assert sock.recv(1000) == b""

    with serving(speak) as server:
        assert ask(server.port, sslmode=mode).message == "no secure connection"


@needs_tls
def test_a_real_server_over_tls_gets_a_proof_and_where_it_is_verified_may_be_trusted(secured, monkeypatch):
    base = {
        "user": "postgres",
        "password": PASSWORD,
        "query": "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
    }
    for mode in ("prefer", "require"):
        seen = ask(secured.port, sslmode=mode, expect="t", **base)
        assert seen.status is UP, seen.message
    assert ask(secured.port, **base).message == "it refuses: InvalidAuthorizationSpecification (28000)"  # in plain text
    stranger = ask(secured.port, sslmode="verify-full", **base)
    assert stranger.message.startswith("its certificate is not trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.folder / "ca.pem"))
    tls_context.cache_clear()
    try:
        assert ask(secured.port, sslmode="verify-full", expect="t", **base).status is UP
        other = ask(secured.port, sslmode="verify-full", **base | {"host": "localhost"})
        assert other.message.startswith("its certificate is not trusted")
    finally:
        tls_context.cache_clear()
