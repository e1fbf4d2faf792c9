"""Who may read `/metrics`: who has the token; without one, who asks this machine by its own name from itself."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web

#: Headers by which a proxy says that it asks for somebody else.
_PASSED_ON = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")


def is_loopback(host: str | None) -> bool:
    try:
        return ip_address((host or "").partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def may_read_metrics(request: web.Request, token: str | None) -> bool:
    """With a token, whoever sends it as a bearer. Without one, this machine alone: not what a proxy has passed on
    (nginx by default in HTTP/1.0, with our own address for a Host and not a word of whom it asks for), nor a page in a
    browser that reaches us by a name of its own (its Host header says so)."""
    if token is not None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), token.encode()
        )
    if request.version < HttpVersion11 or any(name in request.headers for name in _PASSED_ON):
        return False
    try:
        host = urlsplit(f"//{request.host}").hostname
    except ValueError:
        return False
    return is_loopback(request.remote) and is_loopback(host)
