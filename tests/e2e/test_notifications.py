"""People are told of alerts by real workers: what is killed, cut off or away meanwhile loses nothing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from db.connection import get_db_session
from db.services import channels
from tests.e2e.platform import Platform
from tests.e2e.process import until
from worker import publish

pytestmark = pytest.mark.e2e
BAD = ["/bin/false"]


class Sink:
    """A receiver of webhooks that may take its time, or refuse; keeps what came, by the message's id."""

    def __init__(self) -> None:
        self.status = 200
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.arrived = threading.Event()
        self.answer = threading.Event()
        self.answer.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.messages.append((self.headers["Idempotency-Key"], body))
                outer.arrived.set()
                outer.answer.wait(30)
                try:
                    self.send_response(outer.status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:
                    pass  # whoever asked is dead

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def told(self) -> Counter[str]:
        """What was told, however often its message came."""
        unique = dict(self.messages)
        return Counter(
            f"{alert['transition']} {alert['title'].partition(':')[0]}"
            for each in unique.values()
            for alert in each["alerts"]
        )

    def close(self) -> None:
        self.answer.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def told(platform: Platform, sink: Sink) -> Platform:
    """A platform whose alerts go to the sink at once, with ticks that need no beat's patience."""
    with get_db_session() as session:
        made = channels.add(session, name="sink", kind="webhook", config={"url": sink.url, "secret": "s" * 20})
        channels.add_route(session, channel=made, wait_seconds=0, matchers={"alert_type": "deployment_failed"})
    return platform


def states(platform: Platform) -> list[str]:
    return [row["state"] for row in platform.rows("SELECT state FROM notifications ORDER BY id")]


def hurry(platform: Platform) -> None:
    """What beat would ask for in its time is asked for now, and what waits for its next try is due."""
    platform.rows("UPDATE ticks SET last_run_at = NULL")
    platform.rows("UPDATE jobs SET run_at = now() WHERE state = 'queued' AND task = 'tasks.notifications.send'")
    line = publish.line()
    assert line is not None
    for task in ("tasks.alerts.evaluate", "tasks.notifications.dispatch"):
        assert line.ask(task, expires=10)


def until_hurrying(platform: Platform, look: Callable[[], Any], what: str) -> Any:
    def hurried() -> Any:
        found = look()
        if not found:
            hurry(platform)
        return found

    return until(hurried, what)


def test_a_worker_that_is_killed_between_sending_and_recording_sends_once_more_under_the_same_id(
    told: Platform, sink: Sink
) -> None:
    sink.answer.clear()
    worker = told.worker("w1")
    deployed = told.deploy(app="bad", command=BAD)
    told.wait_ended(deployed)
    until_hurrying(told, sink.arrived.is_set, "the message came")
    worker.kill()
    sink.answer.set()
    told.worker("w2")
    until(lambda: states(told) == ["sent"], "the notification is sent")
    ids = [message_id for message_id, _ in sink.messages]
    assert len(ids) == 2  # at least once; and the receiver can tell
    assert len(set(ids)) == 1
    assert sink.told() == Counter({f"raised deployment {deployed.id} of bad 1 to infra": 1})


def test_a_channel_that_was_away_is_told_all_when_it_is_back_and_each_once(told: Platform, sink: Sink) -> None:
    sink.status = 503
    told.worker("w1")
    first = told.deploy(app="bad", command=BAD)
    second = told.deploy(app="worse", command=BAD)
    for each in (first, second):
        told.wait_ended(each)
    until_hurrying(told, lambda: len(sink.messages) >= 2, "it was tried")
    assert "sent" not in states(told)
    sink.status = 200

    until_hurrying(told, lambda: Counter(states(told)) == Counter({"sent": 2}), "all are sent")
    names = {f"raised deployment {first.id} of bad 1 to infra", f"raised deployment {second.id} of worse 1 to infra"}
    assert sink.told() == Counter(dict.fromkeys(names, 1))


def test_a_refusal_for_good_disables_the_channel_and_raises_an_alert(told: Platform, sink: Sink) -> None:
    sink.status = 410
    told.worker("w1")
    told.wait_ended(told.deploy(app="bad", command=BAD))
    until_hurrying(told, lambda: states(told) == ["failed"], "the notification has failed")
    rows = until_hurrying(
        told,
        lambda: told.rows("SELECT title, message FROM monitoring_alerts WHERE alert_type = 'channel_broken'"),
        "an alert tells of it",
    )
    assert rows == [
        {"title": "a channel was disabled by an error: sink", "message": "the receiver answered 410"}
    ]  # fmt: skip
    assert len(sink.messages) == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_silent_beat_is_noticed_and_told_of_by_the_workers(told: Platform, sink: Sink) -> None:
    with get_db_session() as session:
        found = channels.ChannelRepository(session).require_by_name("sink")
        channels.add_route(session, channel=found, wait_seconds=0, matchers={"alert_type": "beat_silent"})
    beat = told.beat()
    told.worker("w1")
    told.rows("INSERT INTO alert_rules (name, for_seconds) VALUES ('beat_silent', 1)")
    beat.kill()
    # A beat that was seen within 20 seconds counts as alive, and then its watchmen are patient for 30.
    until(lambda: sink.told()["raised no beat was seen"], "somebody is told", 120)
    told.beat("beat-2")
    until(lambda: sink.told()["resolved no beat was seen"], "and of its end", 120)
