"""Asks a CI/CD system to deploy, and then how it goes.

Plan::

    {"settings": {...}, "secret": "...", "token": "..." or null, "body": {...}, "job_id": "...", "attempt": 1,
     "fence": 7}

with the settings of :class:`db.drivers.WebhookSettings`. The request is a POST of the body as JSON. Headers, on every
request: ``X-Ops-Timestamp`` (seconds since 1970), ``X-Ops-Signature`` (``sha256=`` and the HMAC-SHA256, by the secret,
of the timestamp, a dot and the body), ``X-Ops-Job``, ``X-Ops-Attempt``, ``X-Ops-Fence``; and on the first an
``Idempotency-Key``, which stays the same when an attempt is repeated.

It is sent once. What was answered is known; where no answer came although something had been sent, nobody can know
whether it was heard, and that is what is said (``unknown``). On TERM the system is asked to cancel, where it can be.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

from tasks import http
from tasks.drivers.events import end, say

#: Answers of something between us and the receiver, which may have passed the request on.
GATEWAYS = (502, 504)
#: Of the five seconds between TERM and KILL: for the answer that is waited for, and for the cancel.
LAST_ANSWER_SECONDS = 1.5
CANCEL_SECONDS = 2.5


class Ended(Exception):
    """It is over: ``ok``, ``failed`` or ``unknown``, and why, in one line."""

    def __init__(self, outcome: str, message: str = "") -> None:
        super().__init__(message)
        self.outcome = outcome


class Stopped(Exception):
    """TERM came."""


@dataclass
class Driver:
    """One run of a plan."""

    plan: dict[str, Any]
    #: What the receiver answered, where it was JSON.
    answer: Any = None
    asked: bool = False
    starting: bool = False
    asking_to_cancel: bool = False
    stopped: bool = False
    _said: set[str] = field(default_factory=set)

    def run(self) -> int:
        try:
            self._start()
            self._follow()  # to its end
        except Ended as ended:
            return end(ended.outcome, str(ended))
        except Stopped:
            self.asking_to_cancel = True  # another TERM changes nothing
            return end("failed", self._cancel())

    def _start(self) -> None:
        body = json.dumps(self.plan["body"], separators=(",", ":"), sort_keys=True).encode()
        say(f"POST {self._settings['url']}")
        self.asked = self.starting = True
        try:
            answer = self._send("POST", self._settings["url"], body, {"Idempotency-Key": self.plan["job_id"]})
        except http.HttpError as error:
            if error.sent:
                raise Ended("unknown", f"the request was sent, and then: {error}; it may have been heard") from None
            raise Ended("failed", f"the receiver was not reached: {error}") from None
        except Stopped:
            raise Ended("unknown", "stopped while the receiver's answer was waited for") from None
        self.starting = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(f"the receiver answered {answer.status}")
        if answer.status in GATEWAYS:
            raise Ended("unknown", f"a gateway answered {answer.status}; the receiver may have been reached")
        if not 200 <= answer.status < 300:
            raise Ended("failed", f"the receiver answered {answer.status}{_redirect(answer.status)}")
        self.answer = _parsed(answer.body)
        if self.stopped:
            raise Stopped

    def _follow(self) -> NoReturn:
        if not self._settings["poll"]:
            raise Ended("ok", "accepted; how it goes on is not asked for")
        url = self._address("status_url")
        if url is None:
            raise Ended("unknown", "accepted, but the answer does not say where its status is asked for")
        failures = 0
        while True:
            time.sleep(self._settings["interval_seconds"])
            status, why = self._look(url)
            failures = failures + 1 if status is None else 0
            if why:
                self._say_once(f"no status: {why}")
            if failures >= self._settings["max_poll_failures"]:
                raise Ended("unknown", f"{failures} looks in a row brought no status; the last: {why}")

    def _look(self, url: str) -> tuple[str | None, str]:
        """The status, or why there is none. Raises Ended where it says how it ended."""
        try:
            answer = self._send("GET", url)
        except http.HttpError as error:
            return None, str(error)
        if not 200 <= answer.status < 300:
            return None, f"it answered {answer.status}{_redirect(answer.status)}"
        document = _parsed(answer.body)
        status = _text(_find(document, self._settings["status_field"]))
        if status is None:
            return None, "the answer has no such field" if document is not None else "the answer is no JSON"
        self._say_once(f"status: {status}")
        said = _text(_find(document, self._settings["message_field"]))
        if status.lower() in map(str.lower, self._settings["success"]):
            raise Ended("ok", said or "")
        if status.lower() in map(str.lower, self._settings["failure"]):
            raise Ended("failed", f"the receiver says {status}" + (f": {said}" if said else ""))
        return status, ""

    def _cancel(self) -> str:
        if not self.asked:
            return "stopped before anything was sent"
        url = self._address("cancel_url")
        if url is None:
            return "stopped; what it asked for may go on: no address to cancel it is known"
        try:
            answer = self._send(self._settings["cancel_method"], url, b"", timeout=CANCEL_SECONDS)
        except http.HttpError as error:
            return f"stopped; what it asked for may go on: asked to cancel, and then: {error}"
        if 200 <= answer.status < 300:
            return f"stopped; the receiver was asked to cancel, and answered {answer.status}"
        return f"stopped; what it asked for may go on: asked to cancel, the receiver answered {answer.status}"

    def _address(self, name: str) -> str | None:
        """That of the settings with the id of what was started; else the answer's own, of the same host."""
        template = self._settings[name]
        if template is not None:
            number = _text(_find(self.answer, self._settings["id_field"]))
            if "{id}" not in template:
                return str(template)
            return None if number is None else str(template).replace("{id}", quote(number, safe=""))
        found = _find(self.answer, self._settings[f"{name}_field"])
        if not isinstance(found, str):
            return None
        if _origin(found) != _origin(self._settings["url"]):
            say(f"the {name} of the answer is another host's, and is not asked")  # it would get our token
            return None
        return found

    def _send(
        self, method: str, url: str, body: bytes | None = None, more: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> http.Answer:  # fmt: skip
        at = str(int(time.time()))
        signed = hmac.new(self.plan["secret"].encode(), at.encode() + b"." + (body or b""), hashlib.sha256).hexdigest()
        headers = {
            "Accept": "application/json", "X-Ops-Timestamp": at, "X-Ops-Signature": f"sha256={signed}",
            "X-Ops-Job": self.plan["job_id"], "X-Ops-Attempt": str(self.plan["attempt"]),
            "X-Ops-Fence": str(self.plan["fence"]),
        } | (more or {})  # fmt: skip
        if body:
            headers["Content-Type"] = "application/json"
        if self.plan["token"] is not None:
            headers["Authorization"] = f"Bearer {self.plan['token']}"
        return http.request(
            method, url, timeout=timeout or self._settings["timeout_seconds"], headers=headers, body=body
        )

    def _say_once(self, text: str) -> None:
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            say(text)

    @property
    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.plan["settings"]
        return settings


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _find(document: Any, path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    for name in path.split("."):
        if isinstance(document, dict):
            document = document.get(name)
        elif isinstance(document, list) and name.isdigit() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document


def _text(value: Any) -> str | None:
    """A word of a stranger, for a line of a log: bounded, and nothing in it that a terminal would obey."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    shown = "".join(each if each.isprintable() else " " for each in str(value)).strip()[:300]
    return shown or None


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None


def _redirect(status: int) -> str:
    return "; a redirect is not followed" if 300 <= status < 400 else ""


def main() -> int:
    driver = Driver(json.loads(sys.stdin.readline()))

    def stop(_number: int, _frame: object) -> None:
        if driver.asking_to_cancel:
            return
        if driver.starting:
            # What the receiver answers is worth a moment: it says whether there is something to cancel.
            driver.stopped = True
            signal.setitimer(signal.ITIMER_REAL, LAST_ANSWER_SECONDS)
            return
        raise Stopped

    def give_up(_number: int, _frame: object) -> None:
        if driver.starting:
            raise Stopped

    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, stop)
    return driver.run()


if __name__ == "__main__":
    sys.exit(main())
