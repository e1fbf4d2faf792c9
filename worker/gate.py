"""The gate of a worker: which queues it hears. A worker that drains hears none, so that doorbells go to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from worker.board import board

log = structlog.get_logger()


class Gate:
    """Of one worker; used by the relay's thread. What touches the consumer runs in the consumer's own loop."""

    def __init__(self, queues: Sequence[str]) -> None:
        self.queues = queues
        self.consumer: Any = None
        self._is_shut = False

    def hold(self, shut: bool) -> bool:
        """Keep it shut, or open; called again and again, since a consumer that comes back hears what it heard at
        first. Answers whether it is shut for certain: no claim that began before is under way."""
        if shut != self._is_shut:
            self._is_shut = shut
            board.drain(shut)
            log.info("worker_drains" if shut else "worker_takes_work_again")
        consumer = self.consumer
        if consumer is not None and consumer.task_consumer is not None:
            heard = consumer.app.amqp.queues.consume_from
            for name in self.queues:
                if shut and name in heard:
                    consumer.call_soon(_leave, consumer, name)
                elif not shut and name not in heard:
                    consumer.call_soon(_join, consumer, name)
        return shut and not board.is_claiming


def _leave(consumer: Any, name: str) -> None:
    if consumer.task_consumer is not None and name in consumer.app.amqp.queues.consume_from:
        consumer.cancel_task_queue(name)


def _join(consumer: Any, name: str) -> None:
    if consumer.task_consumer is not None and name not in consumer.app.amqp.queues.consume_from:
        consumer.add_task_queue(name)
