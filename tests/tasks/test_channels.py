"""Ways to tell people, against real receivers on this machine: what is taken, tried again, and refused for good."""

from __future__ import annotations

import contextlib
import hmac
import json
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import default as modern
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword

from db.states import ChannelKind
from tasks.channels import ChannelError, Message, compose, send
from tests.certificates import self_signed

SECRET = "a-secret-that-nobody-shows"
ID = "7a7a9c52-4b41-4a59-b7de-1f7f0c9c8d11"
ALERT: dict[str, Any] = {
    "id": 3, "fingerprint": "check:1", "alert_type": "check_down", "severity": "high", "status": "firing",
    "title": "web is down", "message": "connection refused", "labels": {"check": "web"}, "value": 12.0,
    "threshold": 10.0, "deployment_id": None, "started_at": "2026-11-25T10:00:00+00:00",
    "fired_at": "2026-11-25T10:00:10+00:00", "resolved_at": None, "acknowledged_at": None,
}  # fmt: skip
MESSAGE = compose(ID, [("raised", ALERT)])


def failure(kind: ChannelKind, config: dict[str, Any], message: Message = MESSAGE) -> tuple[str, bool]:
    with pytest.raises(ChannelError) as error:
        send(kind, config, message)
    said = str(error.value)
    assert "\n" not in said
    assert SECRET not in said
    return said, error.value.permanent


# What a message says ----------------------------------------------------------------------------------------------


def test_a_message_says_what_is_wrong_since_when_and_where_to_look():
    assert MESSAGE.subject == "[firing] high: web is down"
    assert MESSAGE.text.splitlines() == [
        "firing (high): web is down",
        "connection refused",
        "value 12, threshold 10",
        "check=web",
        "began 2026-11-25T10:00:00+00:00; ops alert show 3",
    ]


def test_several_are_one_message_and_what_is_over_by_now_is_said_to_be():
    over = ALERT | {"status": "resolved", "resolved_at": "2026-11-25T10:05:00+00:00"}
    made = compose(ID, [("raised", over), ("resolved", over), ("raised", ALERT | {"id": 4})])
    assert made.subject == "[firing] high: web is down (and 1 more)"
    heads = [line for line in made.text.splitlines() if line.endswith("web is down")]
    assert heads == [
        "was firing, is resolved (high): web is down", "resolved (high): web is down", "firing (high): web is down",
    ]  # fmt: skip
    assert [each["transition"] for each in made.data["alerts"]] == ["raised", "resolved", "raised"]


def test_a_template_says_how_an_alert_reads_and_runs_nothing():
    made = compose(ID, [("raised", ALERT | {"title": "$severity ${id}"})], "$transition: $title on $labels, $$5")
    assert made.text == "raised: $severity ${id} on check=web, $5\n"


def test_a_strangers_text_can_neither_forge_lines_nor_reach_a_terminal():
    made = compose(ID, [("raised", ALERT | {"title": "a\r\nBcc: x@y.z\x1b[2J\u202e", "message": "b\nresolved"})])
    assert made.subject == "[firing] high: a Bcc: x@y.z[2J"
    assert made.text.splitlines()[1] == "b resolved"
    assert "\x1b" not in made.text


# Webhooks ---------------------------------------------------------------------------------------------------------


class Receiver:
    """An HTTP server that answers with a status and keeps what came."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((dict(self.headers), body))
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        if not self.thread.is_alive():
            return
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    try:
        yield made
    finally:
        made.close()


def test_a_webhook_is_signed_json_with_the_messages_id(receiver: Receiver):
    config = {"url": receiver.url, "secret": SECRET, "headers": {"X-Team": "web"}}
    send(ChannelKind.WEBHOOK, config, MESSAGE)
    ((headers, body),) = receiver.requests
    assert json.loads(body) == {"id": ID, "alerts": [{"transition": "raised"} | ALERT]}
    assert (headers["Idempotency-Key"], headers["X-Team"], headers["Content-Type"]) == (ID, "web", "application/json")
    # As docs/alerts.md tells the receiver to.
    signed = headers["X-Ops-Timestamp"].encode() + b"." + body
    assert headers["X-Ops-Signature"] == "sha256=" + hmac.new(SECRET.encode(), signed, "sha256").hexdigest()
    assert SECRET.encode() not in body + json.dumps(headers).encode()


@pytest.mark.parametrize(
    ("status", "permanent"),
    [
        (500, False),
        (502, False),
        (429, False),
        (408, False),
        (400, True),
        (401, True),
        (404, True),
        (410, True),
        (302, True),
    ],
)
def test_an_answer_says_whether_trying_again_makes_sense(receiver: Receiver, status, permanent):
    receiver.status = status
    said = failure(ChannelKind.WEBHOOK, {"url": receiver.url, "secret": SECRET})
    assert said == (f"the receiver answered {status}", permanent)
    assert len(receiver.requests) == 1


def test_a_receiver_that_is_away_is_tried_again(receiver: Receiver):
    receiver.close()
    assert failure(ChannelKind.WEBHOOK, {"url": receiver.url, "secret": SECRET}) == ("connection refused", False)
    nowhere = {"url": "http://169.254.169.254/latest", "secret": SECRET}
    assert "metadata service" in failure(ChannelKind.WEBHOOK, nowhere)[0]


# Mail -------------------------------------------------------------------------------------------------------------


class Mailbox:
    """What a mail server does with what it is given."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.answers: dict[str, str] = {}
        self.logins: list[LoginPassword] = []

    async def handle_RCPT(self, _server, _session, envelope, address, _options) -> str:  # noqa: N802
        answer = self.answers.get(address, "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, _server, _session, envelope) -> str:  # noqa: N802
        self.mails.append(envelope)
        return self.answers.get("DATA", "250 OK")

    def authenticate(self, _server, _session, _envelope, _mechanism, data: LoginPassword) -> AuthResult:
        self.logins.append(data)
        return AuthResult(success=data.password == SECRET.encode(), handled=False)


class Server(Controller):
    """On a port that is free, which is known once it listens."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def mail_server(box: Mailbox, host: str = "127.0.0.1", **options: Any) -> Iterator[dict[str, Any]]:
    made = Server(box, hostname="127.0.0.1", port=0, authenticator=box.authenticate, **options)
    made.start()
    try:
        yield {"host": host, "port": made.port, "tls": "none", "sender": "ops@example.org", "to": ["a@example.org"]}
    finally:
        made.stop()


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS whose certificate this process trusts."""
    certificate = self_signed(tmp_path / "both.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def test_a_mail_is_plain_text_with_one_id_for_all_attempts():
    box = Mailbox()
    with mail_server(box) as config:
        for _ in range(2):
            send(ChannelKind.SMTP, config | {"to": ["a@example.org", "b@example.org"]}, MESSAGE)
    first, second = (message_from_bytes(mail.original_content, policy=modern) for mail in box.mails)
    assert (first["Subject"], first["From"]) == ("[firing] high: web is down", "ops@example.org")
    assert first["To"] == "a@example.org, b@example.org"
    assert first["Message-ID"] == second["Message-ID"] == f"<{ID}@ai-manage-ops>"
    assert first.get_content().replace("\r\n", "\n") == MESSAGE.text
    assert box.mails[0].rcpt_tos == ["a@example.org", "b@example.org"]


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_a_password_goes_by_tls(trusted: ssl.SSLContext, tls: str):
    box = Mailbox()
    options = {"ssl_context": trusted} if tls == "tls" else {"tls_context": trusted, "require_starttls": True}
    if tls == "tls":
        options["auth_require_tls"] = False  # the server does not see that its socket is one already
    with mail_server(box, "localhost", **options) as config:
        config |= {"tls": tls, "username": "ops", "password": SECRET}
        send(ChannelKind.SMTP, config, MESSAGE)
        assert [login.password for login in box.logins] == [SECRET.encode()]
        assert failure(ChannelKind.SMTP, config | {"password": "wrong"}) == ("the server answered 535", True)
    assert len(box.mails) == 1


def test_a_server_that_nobody_vouches_for_gets_no_mail(trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    box = Mailbox()
    with mail_server(box, "localhost", tls_context=trusted) as config:
        said = failure(ChannelKind.SMTP, config | {"tls": "starttls"})
    assert said == ("the server's certificate is not trusted", False)
    assert box.mails == []


def test_without_starttls_nothing_is_sent_in_plain_text():
    box = Mailbox()
    with mail_server(box) as config:
        assert failure(ChannelKind.SMTP, config | {"tls": "starttls"}) == (
            "the server does not offer what the channel asks for", True,
        )  # fmt: skip
    assert box.mails == []


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"a@example.org": "550 no such user"}, ("the server refused all recipients (550)", True)),
        ({"a@example.org": "450 try later"}, ("the server refused all recipients (450)", False)),
        ({"DATA": f"554 we do not like {SECRET}"}, ("the server answered 554", True)),
        ({"DATA": "451 later"}, ("the server answered 451", False)),
    ],
)
def test_what_a_mail_server_refuses_is_told_by_its_number_alone(answers, said):
    box = Mailbox()
    box.answers = answers
    with mail_server(box) as config:
        assert failure(ChannelKind.SMTP, config) == said


def test_one_bad_recipient_does_not_keep_the_others_from_knowing():
    box = Mailbox()
    box.answers = {"b@example.org": "550 no such user"}
    with mail_server(box) as config:
        send(ChannelKind.SMTP, config | {"to": ["a@example.org", "b@example.org"]}, MESSAGE)
    assert box.mails[0].rcpt_tos == ["a@example.org"]


def test_a_mail_server_that_is_away_is_tried_again():
    with mail_server(Mailbox()) as config:
        pass
    assert failure(ChannelKind.SMTP, config) == ("connection refused", False)


@pytest.mark.parametrize("begin", [b"220-hello\r\n", b"220 hello\r\n"])
def test_a_mail_server_that_never_stops_talking_is_hung_up_on(begin: bytes):
    """It took 280 MB a second, and anybody on the way to it can stand in for it until TLS begins."""

    class Endless(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(begin)
            with contextlib.suppress(OSError):
                while True:
                    self.request.sendall(b"250-" + b"x" * 8000 + b"\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        config = {
            "host": "127.0.0.1", "port": server.server_address[1], "tls": "starttls", "sender": "ops@example.org",
            "to": ["a@example.org"],
        }  # fmt: skip
        assert failure(ChannelKind.SMTP, config) == ("the connection was closed", False)
        thread.join()


# Apprise ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
def test_apprise_reaches_what_it_knows(receiver: Receiver):
    send(ChannelKind.APPRISE, {"url": receiver.url.replace("http://", "json://")}, MESSAGE)
    ((_, body),) = receiver.requests
    said = json.loads(body)
    assert (said["title"], said["type"]) == ("[firing] high: web is down", "failure")
    assert "connection refused" in said["message"]


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
def test_apprise_says_whether_it_was_taken_and_shows_no_address(receiver: Receiver, caplog, capfd):
    receiver.status = 500
    url = receiver.url.replace("http://", f"json://user:{SECRET}@")
    assert failure(ChannelKind.APPRISE, {"url": url}) == ("the service did not take it", False)
    unknown = {"url": f"pigeon://{SECRET}"}
    assert failure(ChannelKind.APPRISE, unknown) == (
        "Apprise does not know this kind of address, or finds it incomplete", True,
    )  # fmt: skip
    printed = capfd.readouterr()
    assert SECRET not in caplog.text + printed.out + printed.err
