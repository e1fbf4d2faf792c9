"""The one door to HTTP for health gates and webhooks: bounded in time and size.

Redirects are not followed: a gate that asks ``/healthz`` wants the answer of ``/healthz``. Where a cloud hands out a
machine's credentials is never asked, whatever name stands for it: each address is looked at when it is connected to.
Everything else may be, this host and its network too: that is where applications are.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import IO, Any
from urllib.parse import urlsplit

#: The most of a body that is read.
MAX_BODY_BYTES = 64 * 1024
_PIECE_BYTES = 8192

#: Link-local, where every cloud's metadata is; and those that are elsewhere: Alibaba, Oracle, Azure, AWS, GCP.
_METADATA: tuple[IPv4Network | IPv6Network, ...] = tuple(
    map(
        ip_network,
        ("169.254.0.0/16", "fe80::/10", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32", "fd00:ec2::/32",
         "fd20:ce::/32"),
    )
)  # fmt: skip
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = IPv6Network("::/96")


class HttpError(Exception):
    """No answer, or none that HTTP allows; the message is one line for a person and shows nothing of the address.

    ``sent``: some of the request was on its way, so whoever was asked may have acted on it; nobody can know.
    """

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    seconds: float


def get(url: str, *, timeout: float) -> Answer:
    """Ask for one URL. ``timeout`` is for everything together, in seconds, but for looking up a name, which is the
    system's to bound. Raises HttpError."""
    return request("GET", url, timeout=timeout)


def request(
    method: str, url: str, *, timeout: float, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """Send one request, once: nothing here repeats it. ``timeout`` as for :func:`get`; ``headers`` beside those that
    HTTP itself needs. Raises HttpError, whose ``sent`` says whether it may have been heard."""
    start = time.monotonic()
    answered = bytearray()

    def keep(_status: int, chunk: bytes) -> bool:
        answered.extend(chunk)
        return len(answered) < MAX_BODY_BYTES

    status = _exchange(method, url, timeout, headers or {}, body, keep)
    return Answer(status, bytes(answered[:MAX_BODY_BYTES]), time.monotonic() - start)


def download(url: str, into: IO[bytes], *, timeout: float, most: int) -> str:
    """Write what is there into a file as it comes; its SHA-256, in hexadecimal. ``timeout`` as for :func:`get`.

    Raises HttpError, also where it has more than ``most`` bytes, or the answer is not 200.
    """
    found, size = hashlib.sha256(), 0

    def keep(status: int, chunk: bytes) -> bool:
        nonlocal size
        size += len(chunk)
        if status == 200 and size <= most:
            found.update(chunk)
            into.write(chunk)
        return status == 200 and size <= most

    status = _exchange("GET", url, timeout, {}, None, keep)
    if status != 200:
        raise HttpError(f"it answered {status}")
    if size > most:
        raise HttpError(f"it is larger than {most} bytes")
    return found.hexdigest()


def _exchange(
    method: str,
    url: str,
    timeout: float,
    headers: Mapping[str, str],
    body: bytes | None,
    keep: Callable[[int, bytes], bool],
) -> int:
    """One request; the body goes to ``keep``, piece by piece, as long as that is true. The status."""
    start = time.monotonic()
    left = _Deadline(start + timeout)
    sending = False
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HttpError("not an http or https address")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        own = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "ai-manage-ops", "Connection": "close"}
        with _open(parts.scheme, parts.hostname, port, left) as sock:
            asking = _Socket(sock, left)
            try:
                return _ask(asking, method, target, {**headers, **own}, body, keep)
            finally:
                sending = asking.used
    except TimeoutError:
        raise HttpError(f"no answer within {timeout:g} s", sent=sending) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise HttpError(_reason(error), sent=sending) from None


def _open(scheme: str, host: str, port: int, left: _Deadline) -> socket.socket:
    sock = _connect(host, port, left)
    if scheme == "http":
        return sock
    sock.settimeout(left.seconds())  # for the whole handshake
    return _tls().wrap_socket(sock, server_hostname=host)


def _connect(host: str, port: int, left: _Deadline) -> socket.socket:
    failure = OSError("the name has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if _is_metadata(str(address[0])):
            raise HttpError("the address is a metadata service's, which is never asked")
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left.seconds())
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _is_metadata(address: str) -> bool:
    found = ip_address(address.partition("%")[0])
    return any(each in network for each in (found, *_within(found)) for network in _METADATA)


def _within(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 address may lead to."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _COMPATIBLE or any(address in network for network in _NAT64):
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


def _ask(
    sock: _Socket,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | None,
    keep: Callable[[int, bytes], bool],
) -> int:
    connection = http.client.HTTPConnection("localhost")  # never opened: the socket is
    connection.sock = sock
    connection.request(method, target, body=body, headers=dict(headers))
    with connection.getresponse() as response:
        while (chunk := response.read1(_PIECE_BYTES)) and keep(response.status, chunk):
            pass
        return response.status


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # takes 24 ms


class _Deadline:
    def __init__(self, end: float) -> None:
        self.end = end

    def seconds(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Reader(io.RawIOBase):
    """A socket's bytes. Each wait is as long as what is left of the whole, so a trickle wins no time."""

    def __init__(self, sock: socket.socket, left: _Deadline) -> None:
        self._sock = sock
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._left.seconds())
        return self._sock.recv_into(buffer)


class _Socket:
    """What http.client wants of a socket; whoever opened it closes it."""

    def __init__(self, sock: socket.socket, left: _Deadline) -> None:
        self._sock = sock
        self._left = left
        self.used = False

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._left.seconds())
        self.used = True
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._left))

    def close(self) -> None:
        pass


def _reason(error: Exception) -> str:
    """Why, without the address, and without what a stranger has sent: it may be meant for a terminal."""
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionError():  # reset, or closed without a word
            return "the connection was closed"
        case socket.gaierror():
            return "the name has no address"
        case ssl.SSLCertVerificationError():
            return "its certificate is not trusted"
        case ssl.SSLError():
            return "no secure connection"
        case http.client.InvalidURL() | UnicodeError():
            return "the address holds characters that HTTP does not allow"
        case OSError():
            return error.strerror or type(error).__name__
        case http.client.HTTPException():
            return "the answer is not HTTP"
        case _:
            return "not an http or https address"
