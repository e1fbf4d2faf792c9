"""Servers on loopback that behave as told, and one look at them."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from db.probes import KINDS, ProbePlan, Seen
from db.states import CheckKind
from tasks import probes
from tasks.probes.net import Net
from tests.certificates import self_signed

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
Speak = Callable[[socket.socket], None]


def look(
    kind: str, config: dict[str, Any], *, timeout: float = 5.0, allowed: Any = LOOPBACK, secrets: Any = None,
    known: Any = None,
) -> Seen:  # fmt: skip
    """One run, as a worker does it."""
    checked = KINDS[CheckKind(kind)].model_validate(config)
    plan = ProbePlan(1, CheckKind(kind), checked, timeout, secrets or {}, known or {})
    return probes.run([plan], Net(allowed))[1]


class Server(socketserver.ThreadingTCPServer):
    """Hands each connection to a function; counts them."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512  # with five places, a hundred at once wait for the kernel to try again

    def __init__(self, speak: Speak, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self.speak, self.tls = speak, tls
        super().__init__(("127.0.0.1", 0), None)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/"

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            with self.tls.wrap_socket(request, server_side=True) if self.tls else request as sock:
                self.speak(sock)
        except OSError:
            pass  # whoever asked has gone

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


@contextmanager
def serving(speak: Speak, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(speak, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def read_request(sock: socket.socket) -> bytes:
    """The head of a request."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            return data
        data += chunk
    return data


def answering(body: bytes = b"ok", status: str = "200 OK", *headers: str) -> Speak:
    """Speaks HTTP: one answer."""

    def speak(sock: socket.socket) -> None:
        read_request(sock)
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    return speak


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ssl.SSLContext]:
    """A server's context with a certificate of its own making: for whom, and for how many days."""
    folder: Path = tmp_path_factory.mktemp("certificates")

    def make(days: float) -> ssl.SSLContext:
        path = self_signed(folder / f"{days}.pem", days)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    make.folder = folder
    return make
