"""The door to HTTP gives back an answer or one line, in its time, whatever the other side does."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tasks.http import MAX_BODY_BYTES, Answer, HttpError, get, request
from tests.certificates import self_signed

OK = b"HTTP/1.1 200 OK\r\n"
#: How a request for a secure connection begins.
TLS = b"\x16"
Serve = Callable[[socket.socket, bytes], None]
#: Longer than any test takes; what must end earlier ends by itself.
PATIENT = 60.0


class Server:
    """One listening socket; each connection is served by a function, and its end can be awaited."""

    def __init__(self, serve: Serve, tls: ssl.SSLContext | None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.serve = serve
        self.tls = tls
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        self.hung_up = threading.Event()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection, suppress(OSError):
                if self.closing.is_set():
                    return
                self._answer(self.tls.wrap_socket(connection, server_side=True) if self.tls else connection)
            self.hung_up.set()

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        with connection:
            while b"\r\n\r\n" not in request and request[:1] != TLS and (data := connection.recv(65536)):
                request += data
            self.requests.append(request)
            self.asked.set()
            self.serve(connection, request)

    def close(self) -> None:
        self.closing.set()
        socket.create_connection(self.listener.getsockname()).close()
        self.thread.join()
        self.listener.close()


@contextmanager
def serving(serve: Serve | bytes, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server((lambda it, _: it.sendall(serve)) if isinstance(serve, bytes) else serve, tls)
    try:
        yield server
    finally:
        server.close()


def refused(url: str, timeout: float = PATIENT) -> str:
    with pytest.raises(HttpError) as error:
        get(url, timeout=timeout)
    message = str(error.value)
    assert message
    assert message.isprintable()
    assert "127.0.0.1" not in message
    return message


def drip(piece: bytes) -> Serve:
    """Send a piece again and again, faster than any wait for one piece is long, until the other side hangs up."""

    def serve(connection: socket.socket, _request: bytes) -> None:
        connection.settimeout(0.02)
        while True:
            connection.sendall(piece)
            try:
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue

    return serve


def silent(connection: socket.socket, _request: bytes) -> None:
    connection.recv(1)  # until the other side hangs up


def test_an_answer_comes_with_its_status_and_body():
    with serving(OK + b"Content-Length: 5\r\n\r\nhello, and more than was promised") as server:
        answer = get(f"{server.url}/healthz?a=b%20c", timeout=PATIENT)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (200, b"hello")
    (request,) = server.requests
    assert request.startswith(b"GET /healthz?a=b%20c HTTP/1.1\r\n")
    assert f"Host: {server.url.removeprefix('http://')}\r\n".encode() in request
    assert b"Connection: close\r\n" in request


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", 503, b"busy"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 204 None\r\n\r\n", 204, b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 200, b"abcde"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok", 200, b"ok"),
    ],
)
def test_the_usual_answers_are_read(answer, status, body):
    with serving(answer) as server:
        found = get(server.url, timeout=PATIENT)
    assert (found.status, found.body) == (status, body)


def test_a_redirect_is_an_answer_and_not_followed():
    with serving(OK + b"\r\n") as other:
        with serving(f"HTTP/1.1 302 Found\r\nLocation: {other.url}/\r\nContent-Length: 0\r\n\r\n".encode()) as server:
            assert get(server.url, timeout=PATIENT).status == 302
        assert len(server.requests) == 1
        assert other.requests == []


def test_nobody_listening_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refused(f"http://127.0.0.1:{port}/") == "connection refused"


def after(start: bytes, piece: bytes) -> Serve:
    def serve(connection: socket.socket, request: bytes) -> None:
        connection.sendall(start)
        drip(piece)(connection, request)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        silent,
        drip(b"H"),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
        after(OK, b"x"),
        after(OK + b"Content-Length: 99999\r\n\r\n", b"x"),
        after(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    ],
    ids=["silent", "status", "continue", "headers", "body", "chunks"],
)
def test_the_time_is_for_everything_together(serve):
    with serving(serve) as server:
        # Were it for each wait, this would not end: every piece comes in time.
        assert refused(server.url, timeout=0.3) == "no answer within 0.3 s"
        server.hung_up.wait()


def test_an_endless_body_is_read_up_to_a_bound():
    def endless(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with serving(endless) as server:
        assert get(server.url, timeout=PATIENT).body == b"x" * MAX_BODY_BYTES
        server.hung_up.wait()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the connection was closed"),
        (b"SSH-2.0-OpenSSH_9\r\n", "the answer is not HTTP"),
        (b"\x1b[31mevil\r\n\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n", "the answer is not HTTP"),
        (OK + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n", "the answer is not HTTP"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "the answer is not HTTP"),
    ],
)
def test_what_is_no_answer_is_one_line_that_repeats_nothing_of_it(answer, message):
    with serving(answer) as server:
        assert refused(server.url) == message


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/", "127.0.0.1", "", "http://", "http://127.0.0.1:99999/", "http://127.0.0.1:port/",
        "http://127.0.0.1/a b", "http://127.0.0.1/\r\nX: y", "http://127.0.0.1/\N{SNOWMAN}", "http://[127.0.0.1/",
    ],
)  # fmt: skip
def test_what_is_no_address_is_one_line(url):
    with serving(OK + b"\r\n") as server:
        port = server.url.rpartition(":")[2]
        message = refused(url.replace("127.0.0.1/", f"127.0.0.1:{port}/"))
        assert "address" in message
        assert server.requests in ([], [b""])


def test_a_name_without_an_address_is_one_line():
    assert refused("http://name.invalid/") == "the name has no address"


def test_plain_http_behind_https_is_no_secure_connection():
    with serving(lambda connection, _: connection.sendall(b"nonsense")) as server:
        assert refused(server.url.replace("http:", "https:"), timeout=PATIENT) == "no secure connection"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key."""
    return self_signed(tmp_path_factory.mktemp("tls") / "both.pem")


def test_a_secure_connection_wants_a_certificate_that_is_trusted(certificate, monkeypatch):
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    with serving(OK + b"Content-Length: 2\r\n\r\nok", server_side) as server:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        assert refused(url) == "its certificate is not trusted"
        monkeypatch.setattr("tasks.http._tls", lambda: ssl.create_default_context(cafile=str(certificate)))
        assert get(url, timeout=PATIENT).body == b"ok"
        assert refused(url.replace("localhost", "127.0.0.1")) == "its certificate is not trusted"
    with serving(silent, server_side) as server:
        assert refused(server.url.replace("http://127.0.0.1", "https://localhost"), timeout=0.3).startswith("no answer")


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]", "[fe80::1]",
     "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[::a9fe:a9fe]", "100.100.100.200", "[fd00:ec2::254]",
     "168.63.129.16", "192.0.0.192", "[64:ff9b:1::a9fe:a9fe]"],
)  # fmt: skip
def test_a_metadata_service_is_never_asked_however_it_is_spelt(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    connected: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
    assert "metadata" in refused(f"http://{host}/latest/meta-data/")
    assert connected == []


def test_a_name_that_means_something_else_every_time_is_looked_at_when_it_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(OK + b"Content-Length: 0\r\n\r\n") as server:
        good = socket.getaddrinfo("127.0.0.1", server.listener.getsockname()[1], type=socket.SOCK_STREAM)
        bad = socket.getaddrinfo("169.254.169.254", 80, type=socket.SOCK_STREAM)
        answers = [good, bad]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
        assert get("http://rebound.example/", timeout=PATIENT).status == 200
        assert "metadata" in refused("http://rebound.example/")
        assert len(server.requests) == 1
        monkeypatch.undo()


@pytest.mark.parametrize("where", ["http://169.254.169.254/", "file:///etc/passwd"])
def test_a_redirect_leads_nowhere(where: str) -> None:
    with serving(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + where.encode() + b"\r\n\r\n") as server:
        assert get(server.url, timeout=PATIENT).status == 302


def test_a_request_carries_its_method_headers_and_body_and_no_header_of_ours_is_overridden():
    with serving(OK + b"Content-Length: 2\r\n\r\nhi") as server:
        answer = request(
            "POST", f"{server.url}/hook", timeout=PATIENT, headers={"X-Job": "7", "Host": "elsewhere"}, body=b"{}"
        )
    assert (answer.status, answer.body) == (200, b"hi")
    (heard,) = server.requests
    assert heard.startswith(b"POST /hook HTTP/1.1\r\n")
    assert b"X-Job: 7\r\n" in heard
    assert b"Content-Length: 2\r\n" in heard
    assert b"elsewhere" not in heard


@pytest.mark.parametrize("header", ["a\r\nX-Evil: 1", "a\nb"])
def test_a_header_that_would_be_two_is_refused_before_anything_is_sent(header):
    with serving(OK + b"Content-Length: 0\r\n\r\n") as server, pytest.raises(HttpError) as error:
        request("POST", server.url, timeout=PATIENT, headers={"X-Version": header}, body=b"")
    assert not error.value.sent
    assert server.requests in ([], [b""])


def test_an_error_says_whether_the_request_may_have_been_heard():
    with pytest.raises(HttpError) as refusal:
        request("POST", "http://127.0.0.1:1/", timeout=PATIENT, body=b"{}")
    assert not refusal.value.sent
    with pytest.raises(HttpError) as metadata:
        request("POST", "http://169.254.169.254/", timeout=PATIENT, body=b"{}")
    assert not metadata.value.sent
    with serving(lambda connection, _: connection.close()) as server, pytest.raises(HttpError) as cut:
        request("POST", server.url, timeout=PATIENT, body=b"{}")
    assert cut.value.sent
    with serving(silent) as server, pytest.raises(HttpError) as silence:
        request("POST", server.url, timeout=0.2, body=b"{}")
    assert silence.value.sent
