"""Nothing internal is reached: by an address, however spelt; by a name; by one that changes its mind; by a redirect."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from ipaddress import ip_network

import pytest

from db.probes import HttpCheck, ProbePlan
from db.states import CheckKind, CheckStatus
from tasks import probes
from tasks.addresses import refusal
from tasks.probes import net
from tests.guardian import ROOT
from tests.tasks.probes.conftest import answering, look, read_request, serving
from tests.tasks.test_addresses import CORPUS

UNKNOWN = CheckStatus.UNKNOWN
#: As a URL may spell 127.0.0.1, and resolvers understand it.
SPELLINGS = ["127.0.0.1", "127.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "0x7f000001", "127.0.0.1.", "[::1]",
             "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost", "LOCALHOST", "0", "0.0.0.0"]  # fmt: skip


@pytest.fixture
def trap():
    """A server that nobody may reach."""
    with serving(answering(b"reached")) as server:
        yield server


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_this_host_is_reached(trap, host):
    seen = look("http", {"url": f"http://{host}:{trap.port}/"}, allowed=())
    assert seen.status in (UNKNOWN, CheckStatus.DOWN)
    assert trap.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("kind", ["tcp", "tls", "redis", "postgres", "dns"])
def test_no_kind_reaches_this_host(trap, kind, host):
    more = {"postgres": {"user": "x"}, "dns": {"name": "example.org"}}.get(kind, {})
    where = {"resolver": host} if kind == "dns" else {"host": host}
    seen = look(kind, {"port": trap.port} | where | more, allowed=(), timeout=2)
    assert seen.status is UNKNOWN
    assert seen.message.startswith("not asked: it is")
    assert trap.connections == 0


def test_no_redirect_leads_inside(monkeypatch):
    """The corpus as targets of redirects from a server that may be asked; no socket is ever made for one of them."""
    made = []
    socket_for = net.Net.socket_for
    monkeypatch.setattr(net.Net, "socket_for", lambda self, info: made.append(info[4][0]) or socket_for(self, info))
    allowed = (ip_network("127.0.0.1/32"),)
    targets = [address for address in CORPUS if "%" not in address and refusal(address, allowed)][::2]
    assert len(targets) >= 300

    def speak(sock):
        target = targets[int(read_request(sock).split()[1].strip(b"/"))]
        there = f"[{target}]" if ":" in target else target
        sock.sendall(f"HTTP/1.1 302 Found\r\nLocation: http://{there}/latest/\r\nContent-Length: 0\r\n\r\n".encode())

    with serving(speak) as server:
        for start in range(0, len(targets), 100):
            plans = [
                ProbePlan(n, CheckKind.HTTP, HttpCheck(url=f"{server.url}{n}"), 20.0, {}, {})
                for n in range(start, min(start + 100, len(targets)))
            ]
            seen = probes.run(plans, net.Net(allowed))
            assert {each.status for each in seen.values()} == {UNKNOWN}
        assert server.connections == len(targets)
    assert set(made) == {"127.0.0.1"}


def namespaces() -> str | None:
    """Why this process cannot make a network of its own; None: it can."""
    if not all(map(shutil.which, ("unshare", "ip", "mount"))):
        return "needs Debian's iproute2 and util-linux"
    tried = subprocess.run(["unshare", *_UNSHARE, "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "needs network namespaces, which this machine does not allow"


_UNSHARE = ("-mn",) if os.geteuid() == 0 else ("-rmn",)


@pytest.mark.skipif(namespaces() is not None, reason=str(namespaces()))
def test_nothing_internal_is_reached_where_every_address_would_answer(tmp_path):
    """In a network in which all addresses are one server's, with a name server that changes its mind at each question:
    the whole corpus as targets of redirects, straight and by way of another one, and DNS rebinding. The server says at
    which addresses it was asked."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
    ran = subprocess.run(
        ["unshare", *_UNSHARE, sys.executable, "-m", "tests.tasks.probes.trap", str(resolv)],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["targets"] >= 300
    assert found["could"] >= 300  # without a guard these are reached
    assert set(found["redirects"]) == set(found["names"]) == {"93.184.216.34"}
    assert found["said"] == {"unknown": 2 * found["targets"]}
    assert min(found["asked"].values()) >= 6
    assert found["rebinding"]["up"] + found["rebinding"]["unknown"] == 6 * len(found["asked"])
    assert found["names"]["93.184.216.34"] == found["rebinding"]["up"]


def test_a_chain_of_redirects_is_judged_at_every_step():
    ends = answering(b"", "302 Found", "Location: http://169.254.169.254/latest/")
    with serving(ends) as second, serving(answering(b"", "302 Found", f"Location: {second.url}")) as first:
        seen = look("http", {"url": first.url})
    assert seen.status is UNKNOWN
    assert "metadata" in seen.message
    assert second.connections == 1


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://127.0.0.1/", "ftp://x/", "javascript:1"])
def test_no_redirect_leads_to_another_scheme(location):
    with serving(answering(b"", "302 Found", f"Location: {location}")) as server:
        assert look("http", {"url": server.url}).message == "it leads to what is no http or https address"


def test_a_name_that_changes_its_mind_is_reached_at_the_address_that_was_judged(trap, monkeypatch):
    """DNS rebinding: public when it is judged, this host a moment later. What was judged is what is connected to."""
    asked = []

    def rebinding(host, port, *_, **__):
        asked.append(host)
        address = "192.0.2.1" if len(asked) % 2 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    # What documentation uses stands for a public address that nobody answers at.
    monkeypatch.setattr("tasks.addresses._INTERNAL", tuple(
        network for network in net.refusal.__globals__["_INTERNAL"] if str(network) != "192.0.2.0/24"
    ))  # fmt: skip
    for _ in range(4):
        look("http", {"url": f"http://rebind.example.org:{trap.port}/"}, allowed=(), timeout=0.3)
    assert len(asked) >= 4
    assert trap.connections == 0


def test_a_resolver_that_hangs_is_our_error(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])
    try:
        seen = look("http", {"url": "http://slow.example.org/"}, timeout=0.3)
    finally:
        release.set()
    assert (seen.status, seen.message) == (UNKNOWN, "names cannot be looked up here in time")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.EAI_AGAIN, (UNKNOWN, "names cannot be looked up here")),
        (socket.EAI_NONAME, (CheckStatus.DOWN, "the name has no address")),
    ],
)
def test_a_name_that_is_unknown_is_down_and_a_resolver_that_fails_is_not(monkeypatch, error, expected):
    def fails(*_, **__):
        raise socket.gaierror(error, "")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    for kind, config in (("http", {"url": "http://x.example.org/"}), ("tcp", {"host": "x.example.org", "port": 1})):
        seen = look(kind, config)
        assert (seen.status, seen.message) == expected
