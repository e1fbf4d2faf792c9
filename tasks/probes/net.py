"""The probes' way to the network: names looked up once, every address judged before it is connected to."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Self, TypeVar

from tasks.addresses import Network, refusal

#: For how long an answer of the resolver is used, in seconds.
DNS_SECONDS = 5.0
_RESOLVERS = 32

#: The names that the run of this context waits for.
waiting: ContextVar[list[str]] = ContextVar("ops_probe_waiting")

T = TypeVar("T")
AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]


class Down(Exception):
    """The target says no; the message is one line for people."""

    def __init__(
        self, message: str, latency_seconds: float | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.latency_seconds = latency_seconds
        self.facts = facts or {}


class Unable(Exception):
    """The probe could not do its work, which says nothing of the target."""


class Net:
    """For the runs of one batch, in one event loop; ``allowed``: the internal networks that may be asked."""

    def __init__(self, allowed: Iterable[Network] = ()) -> None:
        self.allowed = tuple(allowed)
        self._closing: list[Any] = []
        self._kept: dict[str, Any] = {}
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._names: dict[tuple[str, int], tuple[float, asyncio.Future[list[AddressInfo]]]] = {}
        self._threads = ThreadPoolExecutor(_RESOLVERS, "resolver")
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self._writers:
            # Without a farewell, for which a TLS server could make us wait.
            writer.transport.abort()
        self._writers.clear()
        for close in reversed(self._closing):
            await close()
        await asyncio.sleep(0)  # in which the transports let go of their sockets
        self._closing.clear()
        self._kept.clear()
        # A resolver that hangs is not waited for: its answer is nobody's any more.
        self._threads.shutdown(wait=False, cancel_futures=True)

    def keep(self, name: str, make: Any) -> Any:
        """A thing of this batch, made when it is first asked for; it has an async ``close``."""
        if name not in self._kept:
            self._kept[name] = make()
            self._closing.append(self._kept[name].close)
        return self._kept[name]

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What may hang, in a thread that the end of the batch does not wait for."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def resolve(self, host: str, port: int) -> list[AddressInfo]:
        """The addresses of a host that may be connected to. Raises Unable where none may, gaierror."""
        waits = waiting.get()
        waits.append(host)
        try:
            found = await self._look_up(host, port)
        except OSError:
            waits.remove(host)
            raise
        waits.remove(host)  # not where the wait is cut off: that it waited is then what there is to say
        refused = {info[4][0]: refusal(str(info[4][0]), self.allowed) for info in found}
        may = [info for info in found if refused[info[4][0]] is None]
        if not may:
            raise Unable(_refused(next(why for why in refused.values() if why)))
        return may

    def judge(self, address: str) -> None:
        """Raises Unable for an address that must not be connected to."""
        if why := refusal(address, self.allowed):
            raise Unable(_refused(why))

    def socket_for(self, info: AddressInfo) -> socket.socket:
        """A socket for one address, judged once more: what is connected to is what was judged."""
        if refusal(str(info[4][0]), self.allowed):
            raise PermissionError("this address must not be connected to")
        return socket.socket(info[0], info[1], info[2])

    async def connect(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, server_name: str | None = None,
        before: Callable[[socket.socket], Awaitable[bool]] | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:  # fmt: skip
        """A connection to the first address that answers; closed at the end of the batch, if not before. ``before``
        asks on the bare socket whether TLS may begin. Raises Unable, OSError, and what ``before`` raises."""
        sock = await self._first(await self.resolve(host, port))
        try:
            if before is not None and not await before(sock):
                tls = None
        except BaseException:
            sock.close()
            raise
        name = (server_name or host) if tls else None
        # From here on the socket is the transport's to close: closed under it, another one might get its number.
        reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name, limit=64 * 1024)
        self._writers.append(writer)
        return reader, writer

    async def _first(self, addresses: list[AddressInfo]) -> socket.socket:
        failure = OSError("the name has no address")
        for info in addresses:
            sock = self.socket_for(info)
            try:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, info[4])
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    async def _look_up(self, host: str, port: int) -> list[AddressInfo]:
        known = self._names.get((host, port))
        if known is None or known[0] < time.monotonic():
            found = asyncio.ensure_future(self._ask(host, port))
            known = self._names[host, port] = (time.monotonic() + DNS_SECONDS, found)
        return await asyncio.shield(known[1])

    async def _ask(self, host: str, port: int) -> list[AddressInfo]:
        literal = _literal(host, port)
        if literal is not None:
            return [literal]
        return list(
            await self.in_thread(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            )
        )


def _literal(host: str, port: int) -> AddressInfo | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port)
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port, 0, 0)


def _refused(why: str) -> str:
    hint = "; OPS_PROBE_ALLOW names the networks that may be asked" if why == "an internal address" else ""
    return f"not asked: it is {why}{hint}"


@lru_cache(maxsize=2)
def tls_context(verify: bool) -> ssl.SSLContext:
    """One for all: making it takes 24 ms."""
    if verify:
        return ssl.create_default_context()
    # Without the authorities: to look among all of them for one that need not be there is a third of a handshake.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
