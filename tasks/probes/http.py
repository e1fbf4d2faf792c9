"""Does a URL answer as it should?

Every connection is fresh, so that what is looked at is what a newcomer meets. Redirects are followed here, not by the
client: each goes through the same door, and takes no credentials, cookies or body to another host, nor from there back
to the first: where in it they would go was another's choice.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import socket
import ssl
import time
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from db.probes import HttpCheck, ProbePlan, Seen
from db.states import CheckStatus
from tasks.probes.certificates import days_left
from tasks.probes.net import AddressInfo, Down, Net, Unable, tls_context
from tasks.probes.texts import SEARCH_SECONDS, finds, found_slow, quoted

#: The most of a body that is read, packed or not.
MAX_BODY_BYTES = 256 * 1024
MAX_HEADERS, MAX_HEADER_BYTES = 200, 16 * 1024
#: Python's own, which are nobody's on the web: one takes 15 s for a body of the size that is read, some always fail.
_NO_CHARSETS = frozenset({"idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"})
_LONGEST_CHARSET = 40
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    charset: str
    location: str | None
    certificate: bytes | None


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: HttpCheck = plan.config
    start = time.monotonic()
    try:
        answer, hops = await _follow(plan, config, net)
    except aiohttp.ClientError as error:
        raise _sorted(error, time.monotonic() - start) from None
    except ValueError:
        raise Down("it leads to what is no address") from None
    seconds = time.monotonic() - start
    facts: dict[str, Any] = {"status": answer.status} | ({"redirects": hops} if hops else {})
    if not config.accepts(answer.status):
        raise Down(f"it answers {answer.status}", seconds, facts)
    await _look_at_body(config, answer, seconds, facts)
    if config.down_seconds is not None and seconds > config.down_seconds:
        said = f"it took {seconds:.3f} s, more than {config.down_seconds:g} s"
        return Seen(CheckStatus.DOWN, seconds, said, facts, is_slow=True)
    if answer.certificate is not None and config.tls_days is not None:
        facts["certificate_days"] = days = round(days_left(answer.certificate), 1)
        if days < config.tls_days:
            return Seen(CheckStatus.DEGRADED, seconds, f"its certificate ends in {days:g} days", facts)
    return found_slow(seconds, config.degraded_seconds, facts)


async def _follow(plan: ProbePlan, config: HttpCheck, net: Net) -> tuple[_Answer, int]:
    """The last answer, and after how many redirects. Raises ClientError, Down, Unable."""
    session = net.keep("http", lambda: _session(net))
    url, method, body = config.url, config.method, config.body
    home, at_home = _origin(url), True
    for hop in range(config.redirects + 1):
        at_home = at_home and _origin(url) == home
        headers = _headers(plan, config) if at_home else {}
        answer = await _ask(session, net, config, method, url, headers, body if at_home else None)
        if answer.status not in _REDIRECTS or answer.location is None or not config.redirects:
            return answer, hop
        url = urljoin(url, answer.location)
        if urlsplit(url).scheme not in ("http", "https"):
            raise Down("it leads to what is no http or https address")
        if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
            method, body = ("HEAD" if method == "HEAD" else "GET"), None
        elif body is not None and _origin(url) != home:
            raise Down("it leads a request with a body to another host")
    raise Down(f"it leads on after {config.redirects} redirects")


async def _ask(
    session: aiohttp.ClientSession, net: Net, config: HttpCheck, method: str, url: str, headers: dict[str, str],
    body: str | None,
) -> _Answer:  # fmt: skip
    host = urlsplit(url).hostname
    if not host:
        raise Down("it leads to what is no address")
    if _is_literal(host):
        net.judge(host)  # nothing is looked up, so nothing else would judge it before the socket does
    data = None if body is None else body.encode()
    tls = tls_context(config.tls_verify)
    async with session.request(
        method, url, headers=headers, data=data, allow_redirects=False, ssl=tls, server_hostname=None
    ) as response:
        assert isinstance(response, _Response)
        return _Answer(
            response.status, await _read(response), response.charset or "utf-8", response.headers.get("Location"),
            response.certificate,
        )  # fmt: skip


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of the body, unpacked where it comes packed although nobody has asked for that."""
    packing = response.headers.get("Content-Encoding", "").lower()
    unpack = zlib.decompressobj(wbits=47) if packing in ("gzip", "x-gzip", "deflate") else None
    body, read = b"", 0
    while len(body) < MAX_BODY_BYTES and read < MAX_BODY_BYTES:
        chunk = await response.content.read(16 * 1024)
        if not chunk:
            break
        read += len(chunk)
        if unpack is not None:
            try:
                chunk = unpack.decompress(chunk, MAX_BODY_BYTES - len(body))
            except zlib.error:
                raise Down("the answer is packed in a way that cannot be read") from None
        body += chunk
    return body[:MAX_BODY_BYTES]


async def _look_at_body(config: HttpCheck, answer: _Answer, seconds: float, facts: dict[str, Any]) -> None:
    if not (config.body_matches or config.body_lacks or config.json_path):
        return
    text = _text(answer)
    if config.body_matches and not await finds(config.body_matches, text):
        raise Down("the answer does not hold what is expected", seconds, facts)
    if config.body_lacks and await finds(config.body_lacks, text):
        raise Down("the answer holds what it must not", seconds, facts)
    if config.json_path:
        await _look_at_json(config, text, seconds, facts)


def _text(answer: _Answer) -> str:
    """In the charset that it names, where it is one. Python remembers each name that it has looked up, for ever."""
    try:
        if (
            len(answer.charset) <= _LONGEST_CHARSET
            and codecs.lookup(answer.charset).name.replace("-", "_") not in _NO_CHARSETS
        ):
            return answer.body.decode(answer.charset, "replace")
    except (LookupError, ValueError):
        pass
    return answer.body.decode("utf-8", "replace")


async def _look_at_json(config: HttpCheck, text: str, seconds: float, facts: dict[str, Any]) -> None:
    from jsonpath_rfc9535 import JSONPathError

    from tasks.probes import paths

    assert config.json_path is not None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise Down("the answer is not JSON", seconds, facts) from None
    try:
        values = await asyncio.to_thread(paths.values, config.json_path, document, SEARCH_SECONDS)
    except TimeoutError:
        raise Unable(f"the JSON path searched for longer than {SEARCH_SECONDS:g} s; write a simpler one") from None
    except (JSONPathError, RecursionError):
        raise Unable("the JSON path cannot be followed here") from None
    if not values:
        raise Down("the answer has nothing at the JSON path", seconds, facts)
    if config.json_equals is not None and not any(_same(value, config.json_equals) for value in values):
        raise Down(f"at the JSON path stands {quoted(json.dumps(values[0]))}", seconds, facts)


def _same(found: Any, wanted: Any) -> bool:
    """As JSON has it: true is not 1."""
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _headers(plan: ProbePlan, config: HttpCheck) -> dict[str, str]:
    headers = dict(config.headers)
    for name in config.secret_headers:
        headers[name] = value = plan.secrets[f"header {name}"]
        if any(each in value for each in "\r\n\0"):
            raise Unable(f"the secret for {name} holds the end of a line, which no header can")
    if config.basic is not None:
        pair = f"{config.basic.user}:{plan.secrets['basic']}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return headers


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _is_literal(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


class _Response(aiohttp.ClientResponse):
    """Remembers the certificate: a short answer's connection is gone when its headers are here."""

    certificate: bytes | None = None

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        transport = connection.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        self.certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        return await super().start(connection)


class _Resolver(AbstractResolver):
    """Names by the net's resolver, which judges their addresses."""

    def __init__(self, net: Net) -> None:
        self._net = net

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET  # noqa: ARG002
    ) -> list[ResolveResult]:  # fmt: skip
        return [
            ResolveResult(
                hostname=host, host=str(info[4][0]), port=port, family=info[0], proto=info[2],
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for info in await self._net.resolve(host, port)
        ]  # fmt: skip

    async def close(self) -> None:
        pass


def _session(net: Net) -> aiohttp.ClientSession:
    def socket_for(info: AddressInfo) -> socket.socket:
        return net.socket_for(info)

    connector = aiohttp.TCPConnector(
        resolver=_Resolver(net), socket_factory=socket_for, limit=0, force_close=True, use_dns_cache=False
    )
    return aiohttp.ClientSession(
        connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None), response_class=_Response,
        headers={"User-Agent": "ai-manage-ops", "Accept-Encoding": "identity"}, max_headers=MAX_HEADERS,
        max_field_size=MAX_HEADER_BYTES, max_line_size=MAX_HEADER_BYTES,
    )  # fmt: skip


def _sorted(error: aiohttp.ClientError, seconds: float) -> Exception:
    """The same as what probes raise, without a stranger's words."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            cause = error.certificate_error
            why = getattr(cause, "verify_message", "")
            return Down(f"its certificate is not trusted{f': {why[:100]}' if why else ''}", seconds)
        case aiohttp.ClientConnectorSSLError():
            return Down("no secure connection", seconds)
        case aiohttp.ClientConnectorError():
            cause = error.os_error
            return cause if isinstance(cause, OSError) else ssl.SSLError()
        case aiohttp.ServerDisconnectedError():
            return Down("the connection was closed", seconds)
        case aiohttp.ClientPayloadError():
            return Down("the answer broke off", seconds)
        case aiohttp.InvalidURL():
            return Down("it leads to what is no address", seconds)
        case aiohttp.ClientResponseError():
            return Down("the answer is not HTTP, or its headers are too many or too long", seconds)
        case OSError():
            return error
        case _:
            return Down("no answer that HTTP allows", seconds)
