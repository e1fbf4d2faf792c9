"""A URL is looked at truly, whatever the server does: in bounded time and memory."""

from __future__ import annotations

import encodings
import gzip
import json
import resource
import socket
import threading

import pytest

from db.states import CheckStatus
from tests.tasks.probes.conftest import answering, look, read_request, serving

UP, DEGRADED, DOWN, UNKNOWN = CheckStatus.UP, CheckStatus.DEGRADED, CheckStatus.DOWN, CheckStatus.UNKNOWN


def ask(speak, **config):
    timeout = config.pop("timeout", 5.0)
    secrets = config.pop("secrets", {})
    with serving(speak, config.pop("tls", None)) as server:
        return look("http", {"url": server.url} | config, timeout=timeout, secrets=secrets)


def test_an_answer_that_is_right_is_up_with_its_latency():
    seen = ask(answering())
    assert (seen.status, seen.message, seen.facts) == (UP, None, {"status": 200})
    assert 0 < seen.latency_seconds < 5


@pytest.mark.parametrize(
    ("body", "status", "config", "expected", "message"),
    [
        (b"", "503 Busy\x1b[2J", {}, DOWN, "it answers 503"),
        (b"", "404 Gone", {"status": "200-299,404"}, UP, None),
        (b"all is well", "200 OK", {"body_matches": "well$"}, UP, None),
        (b"all is bad", "200 OK", {"body_matches": "well$"}, DOWN, "the answer does not hold what is expected"),
        (b"Traceback", "200 OK", {"body_lacks": "Trace"}, DOWN, "the answer holds what it must not"),
        (b'{"a": {"ok": true}}', "200 OK", {"json_path": "$.a.ok", "json_equals": True}, UP, None),
        (b'{"a": 1}', "200 OK", {"json_path": "$.a", "json_equals": True}, DOWN, "at the JSON path stands '1'"),
        (b'{"a": 1}', "200 OK", {"json_path": "$.b"}, DOWN, "the answer has nothing at the JSON path"),
        (b"<html>", "200 OK", {"json_path": "$.b"}, DOWN, "the answer is not JSON"),
        (b"[" * 100_000, "200 OK", {"json_path": "$.b"}, DOWN, "the answer is not JSON"),
        (b"\xff\xfe bad \x80 utf-8 ok", "200 OK", {"body_matches": "utf-8 ok"}, UP, None),
        (b"ok", "200 OK", {"degraded_seconds": 0.000001}, DEGRADED, "it took"),
        (b"ok", "200 OK", {"down_seconds": 0.000001}, DOWN, "it took"),
    ],
)  # fmt: skip
def test_what_is_asserted_decides(body, status, config, expected, message):
    seen = ask(answering(body, status), **config)
    assert seen.status is expected
    assert (seen.message is None) if message is None else seen.message.startswith(message)
    assert "\x1b" not in (seen.message or "")


def test_method_headers_and_body_arrive_and_secrets_only_as_headers():
    got = []

    def speak(sock):
        got.append(read_request(sock))
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    config = {
        "method": "POST", "headers": {"X-A": "b"}, "body": "hello", "secret_headers": {"X-Token": "a/b"},
        "basic": {"user": "me", "secret": "a/c"},
    }  # fmt: skip
    seen = ask(speak, **config, secrets={"header X-Token": "t0ken", "basic": "pass"})
    assert seen.status is UP
    request = got[0].decode().lower()
    assert request.startswith("post / http/1.1")
    assert "x-a: b" in request
    assert "x-token: t0ken" in request
    assert "authorization: basic" in request
    assert "content-length: 5" in request


def test_a_silent_server_is_down_when_the_time_is_over():
    def speak(sock):
        read_request(sock)
        sock.recv(1)  # until whoever asks has gone

    seen = ask(speak, timeout=0.5)
    assert (seen.status, seen.message) == (DOWN, "no answer within 0.5 s")


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_a_trickle_wins_no_time(part):
    stop = threading.Event()

    def speak(sock):
        read_request(sock)
        sock.sendall(part)
        while not stop.wait(0.05):
            sock.sendall(b"a")

    try:
        seen = ask(speak, timeout=1.0)
    finally:
        stop.set()
    assert (seen.status, seen.message) == (DOWN, "no answer within 1 s")


def memory() -> int:
    """The most that this process has ever used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_an_endless_body_is_read_to_its_limit_and_no_further():
    def speak(sock):
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sock.sendall(b"x" * 65536)

    before = memory()
    assert ask(speak).status is UP
    assert memory() - before < 30_000_000


def test_a_gzip_bomb_is_unpacked_to_its_limit_and_no_further():
    bomb = gzip.compress(gzip.compress(b"\0" * 200_000_000, 9), 9)
    before = memory()
    seen = ask(answering(gzip.decompress(bomb), "200 OK", "Content-Encoding: gzip"), body_matches="needle")
    assert (seen.status, seen.message) == (DOWN, "the answer does not hold what is expected")
    assert memory() - before < 30_000_000


def test_what_claims_to_be_packed_and_is_not_is_down():
    seen = ask(answering(b"plain", "200 OK", "Content-Encoding: gzip"))
    assert seen.message == "the answer is packed in a way that cannot be read"


@pytest.mark.parametrize(
    "headers", [[f"X-{n}: {n}" for n in range(10_000)], ["X-Long: " + "a" * 10_000_000]], ids=["many", "long"]
)
def test_ten_thousand_headers_and_one_of_ten_megabytes_are_not_taken(headers):
    seen = ask(answering(b"", "200 OK", *headers))
    assert seen.status is DOWN
    assert seen.message == "the answer is not HTTP, or its headers are too many or too long"


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n", b"\x16\x03\x01\x02", b"HTTP/9 what\r\n\r\n"])
def test_what_is_not_http_is_down(said):
    def speak(sock):
        read_request(sock)
        sock.sendall(said)

    assert ask(speak).status is DOWN


@pytest.mark.parametrize("body", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc", b""])
def test_an_answer_that_breaks_off_is_down(body):
    def speak(sock):
        read_request(sock)
        sock.sendall(body)

    assert ask(speak).message in ("the answer broke off", "the connection was closed")


def test_a_port_that_nobody_listens_on_is_down():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        seen = look("http", {"url": f"http://127.0.0.1:{taken.getsockname()[1]}/"})
    assert (seen.status, seen.message) == (DOWN, "connection refused")


def test_a_pattern_that_never_ends_is_our_error():
    seen = ask(answering(b"a" * 5000 + b"!"), body_matches="^(a|aa)+$")
    assert seen.status is UNKNOWN
    assert seen.message.startswith("the pattern searched for longer")


def test_a_certificate_that_nobody_vouches_for_is_down_unless_it_need_not_be_trusted(certificates):
    seen = ask(answering(), tls=certificates(90))
    assert seen.status is DOWN
    assert seen.message.startswith("its certificate is not trusted")
    assert ask(answering(), tls=certificates(90), tls_verify=False).status is UP


def test_a_certificate_that_ends_soon_is_degraded(certificates):
    seen = ask(answering(), tls=certificates(3), tls_verify=False)
    assert (seen.status, seen.message) == (DEGRADED, "its certificate ends in 3 days")
    assert ask(answering(), tls=certificates(3), tls_verify=False, tls_days=None).status is UP


def test_speaking_plain_http_to_a_tls_port_and_the_other_way_round_is_down(certificates):
    with serving(answering(), certificates(90)) as server:
        assert look("http", {"url": server.url.replace("https", "http")}).status is DOWN
    with serving(answering()) as server:
        assert look("http", {"url": server.url.replace("http", "https")}).status is DOWN


def test_redirects_are_followed_counted_and_bounded():
    def speak(sock):
        path = read_request(sock).split(b" ")[1].decode()
        step = int(path.strip("/") or 0)
        end = step == 3
        head = "HTTP/1.1 200 OK" if end else f"HTTP/1.1 302 Found\r\nLocation: /{step + 1}"
        sock.sendall(f"{head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    assert ask(speak).facts == {"status": 200, "redirects": 3}
    assert ask(speak, redirects=2).message == "it leads on after 2 redirects"
    assert ask(speak, redirects=0).message == "it answers 302"


def test_credentials_and_bodies_do_not_cross_to_another_host():
    heard = []

    def other(sock):
        heard.append(read_request(sock).decode())
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    config = {
        "secret_headers": {"X-Token": "a/b"},
        "basic": {"user": "me", "secret": "a/c"},
        "headers": {"Cookie": "c"},
    }
    secrets = {"header X-Token": "t0ken", "basic": "pass"}
    with serving(other) as target:
        away = answering(b"", "302 Found", f"Location: {target.url}", "Set-Cookie: a=b")
        assert ask(away, **config, secrets=secrets).status is UP
        kept = answering(b"", "307 Found", f"Location: {target.url}")
        refused = ask(kept, method="POST", body="secret", **config, secrets=secrets)
    assert refused.message == "it leads a request with a body to another host"
    assert len(heard) == 1
    assert not [word for word in ("t0ken", "authorization", "cookie", "secret") if word in heard[0].lower()]


def test_another_host_does_not_send_credentials_to_a_place_of_its_choice():
    """From the host that the check names, to another, and back: to a path that nobody here has chosen."""
    asked = []

    def home(sock):
        asked.append(read_request(sock).decode())
        place = there.url if len(asked) == 1 else None
        head = f"302 Found\r\nLocation: {place}" if place else "200 OK"
        sock.sendall(f"HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    with serving(home) as here, serving(lambda sock: back(sock)) as there:
        back = answering(b"", "302 Found", f"Location: {here.url}admin/delete?all")
        config = {"url": here.url, "secret_headers": {"X-Token": "a/b"}}
        assert look("http", config, secrets={"header X-Token": "t0ken"}).facts == {"status": 200, "redirects": 2}
    assert ["t0ken" in each for each in asked] == [True, False]
    assert asked[1].startswith("GET /admin/delete?all ")


def test_json_of_every_kind_is_compared_as_json():
    for value in ("text", 5, 0.5, False, None):
        document = json.dumps({"v": value}).encode()
        wanted = {"json_path": "$.v"} | ({} if value is None else {"json_equals": value})
        assert ask(answering(document), **wanted).status is UP


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("$[?count($[?count($.*)>0])>0]", list(range(1000))),
        ("$[?search(@.a, '^(a|a)+$')]", [{"a": "a" * 40 + "b"}]),
        ("$[?match(@.a, @.b)]", [{"a": "a" * 40 + "b", "b": "(a|a)+"}]),
        ("$" + "[0,0]" * 50, json.loads("[" * 50 + "]" * 50)),
    ],
)
def test_a_json_path_that_would_take_for_ever_holds_up_nobody(path, document):
    seen = ask(answering(json.dumps(document).encode()), json_path=path, timeout=30)
    assert seen.status is UNKNOWN
    assert seen.message.startswith("the JSON path searched for longer")


@pytest.mark.parametrize(
    ("path", "found"), [("$[?search(@.a, 'b.')].n", 1), ("$[?match(@.a, 'b.')].n", 2), ("$[?match(@.n, '1')]", None)]
)
def test_patterns_in_json_paths_find_what_they_should(path, found):
    seen = ask(answering(b'[{"a": "abc", "n": 1}, {"a": "bc", "n": 2}]'), json_path=path, json_equals=found)
    assert seen.status is (DOWN if found is None else UP)


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "unicode_escape", "no-such", "\xff"])
def test_a_charset_that_is_none_is_not_believed(charset):
    """One of Python's own takes time by the square of a text, in which every other check of the batch stands still."""
    body = b"ok" + b"z" * 250_000
    seen = ask(answering(body, "200 OK", f"Content-Type: text/plain; charset={charset}"), body_matches="^okz+$")
    assert (seen.status, seen.message) == (UP, None)


def test_a_secret_that_no_header_can_hold_is_our_error():
    with serving(answering()) as server:
        config = {"url": server.url, "secret_headers": {"X-Token": "site/token"}}
        seen = look("http", config, secrets={"header X-Token": "s3cret-value\n"})
    assert (seen.status, seen.message) == (
        CheckStatus.UNKNOWN, "the secret for X-Token holds the end of a line, which no header can"
    )  # fmt: skip
    assert server.connections == 0


def test_the_names_of_charsets_that_strangers_make_up_do_not_pile_up():
    named = "x" * 5000
    with serving(answering(b"hello", "200 OK", f"Content-Type: text/plain; charset={named}")) as server:
        assert look("http", {"url": server.url, "body_matches": "hello"}).status is CheckStatus.UP
    assert not [name for name in encodings._cache if len(name) > 1000]
