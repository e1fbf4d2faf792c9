"""Flower, closed: it shows every task, so it does not start without a password; and it only looks.

`celery -A worker.app flower` takes its user and password from ``FLOWER_BASIC_AUTH`` like any other setting of ours
(environment, ``.env``, the embedded stack), and asks for them on ``/metrics`` and ``/healthcheck`` too, which Flower
itself leaves open. Its API starts tasks as nobody in particular, with any arguments, past every role: that is switched
off, as remote control is (``OPS_REMOTE_CONTROL=full`` brings both back). What it hears of workers is the broker's word,
so what it keeps of that is bounded, and no other site may show its pages in a frame.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from db.errors import SettingsError
from db.services.deployments import RUN_TASK
from db.services.notifications import SEND_TASK
from db.settings import get_settings
from worker.schedule import TICKS

_OPTIONS = ("--basic-auth", "--basic_auth", "--auth")
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'; object-src 'none'; base-uri 'none'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
#: Flower keeps counters per worker and per task for ever: so many of each, and names of this length.
MAX_NAMES = 1000
MAX_NAME_LENGTH = 255
_EVENTS = frozenset(
    f"{kind}-{what}"
    for kind, words in (
        ("worker", "online heartbeat offline"),
        ("task", "sent received started succeeded failed rejected revoked retried"),
    )
    for what in words.split()
)


def prepare(arguments: Sequence[str]) -> None:
    """Where the command line asks for Flower, close it. Raises SettingsError when no password is set."""
    if "flower" not in arguments:
        return
    settings = get_settings()
    if settings.flower_basic_auth is not None:
        os.environ["FLOWER_BASIC_AUTH"] = settings.flower_basic_auth.get_secret_value()
    given = any(word.partition("=")[0] in _OPTIONS and not word.endswith("=") for word in arguments)
    # One that is set and empty, as in a copied `.env.example`, is none.
    if not given and not os.environ.get("FLOWER_BASIC_AUTH"):
        raise SettingsError("Flower shows everything, and no password is set; set FLOWER_BASIC_AUTH=user:password")
    # Flower takes a list: of a password with a comma it would accept the part before alone.
    if not all(user and word for user, _, word in (each.partition(":") for each in _listed())):
        raise SettingsError("FLOWER_BASIC_AUTH is malformed; for example user:password, without a comma in either")
    if settings.remote_control == "read":
        os.environ["FLOWER_READ_ONLY"] = "true"
    _close_open_pages()
    _bound_events()


def _listed() -> list[str]:
    return os.environ["FLOWER_BASIC_AUTH"].split(",") if os.environ.get("FLOWER_BASIC_AUTH") else []


def _close_open_pages() -> None:
    from flower.views import BaseHandler, monitor
    from tornado.web import authenticated

    for page in (monitor.Metrics, monitor.Healthcheck):
        page.get = authenticated(page.get)
    given, ask = BaseHandler.set_default_headers, BaseHandler.get_current_user

    def set_default_headers(self: Any) -> None:
        given(self)
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def get_current_user(self: Any) -> Any:
        from tornado.web import HTTPError

        try:
            return ask(self)
        except TypeError:  # a password that is not ASCII is a wrong one, not a fault
            raise HTTPError(401) from None

    BaseHandler.set_default_headers, BaseHandler.get_current_user = set_default_headers, get_current_user


def _bound_events() -> None:
    from flower.events import EventsState

    take = EventsState.event
    is_sane = Doorkeeper()

    def event(self: Any, said: Any) -> None:
        if is_sane(said):
            take(self, said)

    EventsState.event = event


class Doorkeeper:
    """Lets an event pass that Celery may have sent, of no more than so many workers and tasks."""

    def __init__(self) -> None:
        self._hosts: set[str] = set()
        # However many names are forged, ours are let in.
        self._tasks = {RUN_TASK, SEND_TASK, *(task for task, _ in TICKS.values())}

    def __call__(self, event: Any) -> bool:
        if not isinstance(event, dict) or event.get("type") not in _EVENTS:
            return False
        host, name = event.get("hostname"), event.get("name")
        if event["type"].startswith("task-") and not _is_name(event.get("uuid")):
            return False
        return _admits(self._hosts, host) and (name is None or _admits(self._tasks, name))


def _admits(known: set[str], name: Any) -> bool:
    if not _is_name(name) or (name not in known and len(known) >= MAX_NAMES):
        return False
    known.add(name)
    return True


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH
