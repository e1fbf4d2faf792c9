"""Remote control that only looks: who can write to the broker must not be able to stop a worker with it.

Celery obeys whatever lies in its mailbox: shut down, kill a task's process, stop consuming, match this regular
expression. Here the commands that only report are answered, the others with an error, and everything else that is
found in the mailbox is dropped and counted. ``OPS_REMOTE_CONTROL=full`` brings Celery's own back.
"""

from __future__ import annotations

from typing import Any

from celery.worker.consumer.control import Control as CeleryControl
from celery.worker.control import Panel
from celery.worker.pidbox import Pidbox

from db.settings import get_settings
from worker.board import Dropped, board

#: What `celery inspect` and Flower ask for. `enable_events` is Flower's, and changes nothing that is not on already.
REPORTS = frozenset(
    {"ping", "stats", "active", "reserved", "scheduled", "revoked", "registered", "active_queues", "query_task",
     "conf", "report", "clock", "dump_conf", "dump_active", "dump_reserved", "dump_schedule", "dump_revoked",
     "dump_tasks", "heartbeat", "enable_events"}
)  # fmt: skip


class Control(CeleryControl):
    """The step of the consumer that listens to the mailbox."""

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        if get_settings().remote_control == "read" and not self.is_green:
            self.box = Mailbox(c)
            self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown


class Mailbox(Pidbox):
    """A worker's mailbox in which anything may lie."""

    def on_message(self, body: Any, message: Any) -> None:  # noqa: ARG002
        try:
            self._obey(body)
        except Exception:  # noqa: BLE001 - whoever asked badly gets no answer
            board.count(Dropped.MALFORMED)

    def _obey(self, body: dict[str, Any]) -> None:
        self._forward_clock()
        destination = body.get("destination")
        # `pattern` is a regular expression of somebody else's choice: it is not looked at.
        if body.get("pattern") or (destination and self.hostname not in destination):
            return
        answer = self._answer(str(body["method"]), body.get("arguments") or {})
        if reply_to := body.get("reply_to"):
            self.node.reply(
                {self.hostname: answer},
                exchange=self.node.mailbox.reply_exchange.name,
                routing_key=str(reply_to["routing_key"]),
                ticket=str(body["ticket"]),
            )

    def _answer(self, method: str, arguments: dict[str, Any]) -> Any:
        if method not in REPORTS:
            board.count(Dropped.REFUSED_COMMAND if method in Panel.data else Dropped.MALFORMED)
            return {"error": f"{method[:40]} is refused: this worker runs without OPS_REMOTE_CONTROL=full"}
        try:
            return self.node.handle(method, arguments)
        except TypeError as error:
            return {"error": str(error)[:200]}
