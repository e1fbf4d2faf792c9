"""A CI/CD system is asked once, signed; what it answers is told truthfully, and what nobody can know, as such."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from db.drivers import WebhookSettings
from db.errors import InvalidInput
from db.fields import check
from tasks.drivers import PROGRAMS
from tests.tasks.conftest import Program

SECRET = "a-secret-of-the-receiver"
Reply = Callable[["Request"], None]
Drive = Callable[..., Program]


@dataclass
class Request:
    """One request as it came; ``answer`` sends something back."""

    handler: BaseHTTPRequestHandler
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def answer(self, status: int, document: Any = None, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(body)


@dataclass
class Ci:
    """A real HTTP server that does to each request what the test says."""

    url: str = ""
    replies: dict[str, Reply] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    closing: threading.Event = field(default_factory=threading.Event)

    def of(self, path: str) -> list[Request]:
        return [each for each in self.requests if each.path == path]


@contextmanager
def running(ci: Ci) -> Iterator[Ci]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self, self.command, self.path, dict(self.headers), body)
            ci.requests.append(request)
            ci.came.release()
            ci.replies[self.path](request)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    ci.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield ci
    finally:
        ci.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def ci() -> Iterator[Ci]:
    with running(Ci()) as made:
        yield made


@pytest.fixture
def drive(program, ci) -> Drive:
    """Start the driver with settings that a user could have saved."""

    def start(token: str | None = None, **settings: Any) -> Program:
        given = {"url": f"{ci.url}/deploy", "secret": "ci/hook", "interval_seconds": 0.05} | settings
        saved = check(WebhookSettings, given).model_dump(mode="json")
        driver = program(PROGRAMS["webhook"], DATABASE_URL="postgresql://leak", ENCRYPTION_KEY="leak")
        driver.say({
            "settings": saved, "secret": SECRET, "token": token, "body": {"version": "v1"}, "job_id": "job-7",
            "attempt": 2, "fence": 9,
        })  # fmt: skip
        return driver

    return start


def end_of(driver: Program) -> tuple[str, str]:
    """How it went, in its own words; the exit code says the same."""
    *_, last = driver.finish()
    assert last["event"] == "end"
    assert [event["event"] for event in driver.seen].count("end") == 1
    assert driver.process.returncode == {"ok": 0, "failed": 1, "unknown": 3}[last["outcome"]]
    assert "\n" not in last["message"]
    assert "127.0.0.1" not in last["message"]
    return last["outcome"], last["message"]


def accepts(ci: Ci, *statuses: Any, **more: Any) -> None:
    """The request is accepted, and then these are the answers of its status; the last for ever."""
    left = list(statuses)
    ci.replies["/deploy"] = lambda it: it.answer(202, {"id": 17, "status_url": f"{ci.url}/runs/17"} | more)
    ci.replies["/runs/17"] = lambda it: it.answer(200, left.pop(0) if len(left) > 1 else left[0])


def test_it_asks_once_and_then_how_it_goes_until_it_has_ended(ci, drive):
    accepts(
        ci, {"status": "queued"}, {"status": "running"}, {"status": "running"}, {"status": "SUCCESS", "message": "up"}
    )
    driver = drive()
    assert end_of(driver) == ("ok", "up")
    assert [each.method for each in ci.requests] == ["POST", "GET", "GET", "GET", "GET"]
    said = driver.output("platform").splitlines()
    assert said == [
        f"POST {ci.url}/deploy",
        "the receiver answered 202",
        "status: queued",
        "status: running",
        "status: SUCCESS",
    ]
    assert json.loads(ci.requests[0].body) == {"version": "v1"}


def test_every_request_is_signed_and_says_for_what_it_is(ci, drive):
    accepts(ci, {"status": "passed"})
    assert end_of(drive(token="a-token"))[0] == "ok"
    for request in ci.requests:
        at = request.headers["X-Ops-Timestamp"]
        expected = hmac.new(SECRET.encode(), at.encode() + b"." + request.body, hashlib.sha256).hexdigest()
        assert request.headers["X-Ops-Signature"] == f"sha256={expected}"
        assert abs(time.time() - int(at)) < 60
        names = ("X-Ops-Job", "X-Ops-Attempt", "X-Ops-Fence", "Authorization")
        assert [request.headers[name] for name in names] == ["job-7", "2", "9", "Bearer a-token"]
        assert SECRET not in str(request.headers) + request.path
    assert [each.headers.get("Idempotency-Key") for each in ci.requests] == ["job-7", None]


def test_words_and_fields_are_the_receivers_own(ci, drive):
    ci.replies["/deploy"] = lambda it: it.answer(201, {"run": [{"no": "a/b ?"}]})
    ci.replies["/status/a%2Fb%20%3F"] = lambda it: it.answer(
        200, {"x": {"state": "broken", "why": "disk\x1b[2J full\n"}}
    )
    driver = drive(
        id_field="run.0.no", status_url=f"{ci.url}/status/{{id}}", status_field="x.state", message_field="x.why",
        success=["done"], failure=["broken"],
    )  # fmt: skip
    assert end_of(driver) == ("failed", "the receiver says broken: disk [2J full")


def test_without_polling_the_answer_is_the_end_of_it(ci, drive):
    accepts(ci)
    assert end_of(drive(poll=False)) == ("ok", "accepted; how it goes on is not asked for")
    assert len(ci.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 500, 503])
def test_what_the_receiver_refuses_has_failed(ci, drive, status):
    ci.replies["/deploy"] = lambda it: it.answer(status)
    assert end_of(drive()) == ("failed", f"the receiver answered {status}")
    assert len(ci.requests) == 1


def test_a_redirect_is_not_followed(ci, drive):
    ci.replies["/deploy"] = lambda it: it.answer(307, Location=f"{ci.url}/elsewhere")
    assert end_of(drive()) == ("failed", "the receiver answered 307; a redirect is not followed")
    assert len(ci.requests) == 1


def test_a_receiver_that_is_not_reached_has_not_been_asked(drive):
    assert end_of(drive(url="http://127.0.0.1:1/")) == ("failed", "the receiver was not reached: connection refused")
    outcome, message = end_of(drive(url="http://169.254.169.254/"))
    assert outcome == "failed"
    assert "metadata" in message


def cut(request: Request) -> None:
    """The connection ends without an answer, though the request was read to its end."""
    request.handler.close_connection = True


def half(request: Request) -> None:
    request.handler.wfile.write(b"HTTP/1.")
    request.handler.close_connection = True


def hangs(ci: Ci) -> Reply:
    return lambda _: (ci.closing.wait(), None)[1]


@pytest.mark.parametrize(("reply", "why"), [(cut, "the connection was closed"), (half, "the answer is not HTTP")])
def test_a_connection_that_is_cut_after_the_request_leaves_it_unknown(ci, drive, reply, why):
    ci.replies["/deploy"] = reply
    outcome, message = end_of(drive())
    assert outcome == "unknown"
    assert message == f"the request was sent, and then: {why}; it may have been heard"
    assert len(ci.requests) == 1, "asked once, and not again"


def test_a_receiver_that_hangs_leaves_it_unknown(ci, drive):
    ci.replies["/deploy"] = hangs(ci)
    assert end_of(drive(timeout_seconds=0.3)) == (
        "unknown", "the request was sent, and then: no answer within 0.3 s; it may have been heard"
    )  # fmt: skip


@pytest.mark.parametrize("status", [502, 504])
def test_what_a_gateway_says_of_its_own_leaves_it_unknown(ci, drive, status):
    ci.replies["/deploy"] = lambda it: it.answer(status)
    assert end_of(drive()) == ("unknown", f"a gateway answered {status}; the receiver may have been reached")


@pytest.mark.parametrize(
    "answer", [b"", b"not json", b"[" * 60_000, b"{}", b'{"status_url": 7}', b"{" + b" " * 100_000 + b"}"]
)
def test_an_answer_that_leads_nowhere_leaves_it_unknown(ci, drive, answer):
    ci.replies["/deploy"] = lambda it: it.answer(200, answer)
    assert end_of(drive()) == ("unknown", "accepted, but the answer does not say where its status is asked for")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "https://127.0.0.1/", "http://127.1/x", "file:///etc/passwd"])
def test_an_address_of_the_answer_that_is_another_hosts_is_not_asked(ci, drive, url):
    ci.replies["/deploy"] = lambda it: it.answer(200, {"status_url": url})
    driver = drive(token="a-token")
    assert end_of(driver)[0] == "unknown"
    assert "another host's" in driver.output("platform")


def test_a_status_that_fails_for_a_while_is_asked_for_again(ci, drive):
    accepts(ci, {"status": "running"})
    trouble = [
        lambda it: it.answer(500), cut, lambda it: it.answer(302, Location="/"), lambda it: it.answer(200, b"\xff\xfe"),
        lambda it: it.answer(200, {"status": True}), lambda it: it.answer(200, b"x" * 200_000),
        lambda it: it.answer(200, {"status": "passed"}),
    ]  # fmt: skip
    ci.replies["/runs/17"] = lambda it: trouble.pop(0)(it)
    driver = drive()
    assert end_of(driver)[0] == "ok"
    assert "no status: it answered 500\n" in driver.output("platform")


def test_a_status_that_never_comes_leaves_it_unknown(ci, drive):
    accepts(ci)
    ci.replies["/runs/17"] = lambda it: it.answer(500)
    assert end_of(drive(max_poll_failures=3)) == (
        "unknown", "3 looks in a row brought no status; the last: it answered 500"
    )  # fmt: skip


def stop(driver: Program) -> None:
    os.killpg(driver.pid, signal.SIGTERM)


def test_a_stop_asks_the_receiver_to_cancel(ci, drive):
    accepts(ci, {"status": "running"}, cancel_url=f"{ci.url}/runs/17/cancel")
    ci.replies["/runs/17/cancel"] = lambda it: it.answer(202)
    driver = drive()
    driver.until("log", "status: running")
    stop(driver)
    assert end_of(driver) == ("failed", "stopped; the receiver was asked to cancel, and answered 202")
    (asked,) = ci.of("/runs/17/cancel")
    assert (asked.method, asked.headers["X-Ops-Job"]) == ("POST", "job-7")
    assert "X-Ops-Signature" in asked.headers


def test_a_stop_that_nobody_can_be_told_of_says_that_it_goes_on(ci, drive):
    accepts(ci, {"status": "running"})
    driver = drive(interval_seconds=3600)
    driver.until("log", "answered 202")
    stop(driver)
    assert "may go on: no address to cancel it is known" in end_of(driver)[1]
    accepts(ci, {"status": "running"})
    ci.replies["/gone/17"] = lambda it: it.answer(410)
    driver = drive(cancel_url=f"{ci.url}/gone/{{id}}", cancel_method="DELETE")
    driver.until("log", "status: running")
    stop(driver)
    assert end_of(driver)[1].endswith("may go on: asked to cancel, the receiver answered 410")
    assert ci.of("/gone/17")[0].method == "DELETE"


def test_a_stop_while_the_answer_is_waited_for_waits_a_moment_for_it(ci, drive):
    come = threading.Event()

    def late(request: Request) -> None:
        come.wait()
        request.answer(202, {"cancel_url": f"{ci.url}/cancel"})

    ci.replies |= {"/deploy": late, "/cancel": lambda it: it.answer(200)}
    driver = drive()
    ci.came.acquire()
    stop(driver)
    come.set()
    assert end_of(driver) == ("failed", "stopped; the receiver was asked to cancel, and answered 200")


def test_a_stop_while_the_answer_does_not_come_leaves_it_unknown(ci, drive):
    ci.replies["/deploy"] = hangs(ci)
    driver = drive()
    ci.came.acquire()
    stop(driver)
    assert end_of(driver) == ("unknown", "stopped while the receiver's answer was waited for")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "settings.url"),
        ({"url": "http://h/", "secret": "no slash"}, "settings.secret: a secret is named SERVICE/NAME"),
        ({"url": "ftp://h/", "secret": "a/b"}, "settings.url: an http or https address is needed"),
        ({"url": "http://u:p@h/", "secret": "a/b"}, "settings.url: a user or password"),
        ({"url": "http://h/", "secret": "a/b", "success": ["Ok"], "failure": ["oK"]}, "settings: a word means"),
        ({"url": "http://h/", "secret": "a/b", "status_field": "a..b"}, "settings.status_field"),
        ({"url": "http://h/", "secret": "a/b", "success": []}, "settings.success"),
        ({"url": "http://h/", "secret": "a/b", "retries": 3}, "settings.retries"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_saved(settings, said):
    with pytest.raises(InvalidInput) as refused:
        check(WebhookSettings, settings, "settings")
    assert str(refused.value).startswith(said)
