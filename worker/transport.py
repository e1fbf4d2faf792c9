"""Redis or Valkey as a broker that may be hostile: what cannot be read is dropped and counted, and reading goes on.

kombu's transport trusts what lies in the broker: one string that is not JSON ends a worker, one member of a binding
set stops all publishing, and a missing header counts as a lost connection.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel as RedisChannel
from kombu.transport.redis import QoS as RedisQoS
from kombu.transport.redis import Transport as RedisTransport
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.exceptions import ResponseError

from worker.board import Dropped, board

log = structlog.get_logger()


def install() -> None:
    """Make `redis://` and `rediss://` mean :class:`OpsTransport` in this process."""
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "worker.transport:OpsTransport"


class OpsQoS(RedisQoS):
    """Unacknowledged messages, for an application's own tasks; the platform's are never kept."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        restore = super().restore_by_tag

        def forget() -> None:
            self._remove_from_indices(tag).execute()

        _or_drop(self.channel, lambda: restore(tag, client, leftmost), forget)


class OpsMessage(RedisChannel.Message):
    """A message that is taken as it lies there: unpacking one may need all of a machine's memory."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        if channel.uncompressed and "compression" in (payload.get("headers") or {}):
            raise ValueError("compressed")
        super().__init__(payload, channel=channel, **kwargs)


class OpsChannel(RedisChannel):
    """A Redis channel that drops what it cannot read, and removes keys of ours that are not what they should be."""

    QoS = OpsQoS
    Message = OpsMessage
    #: A transport option: compressed messages are dropped.
    uncompressed = False
    from_transport_options = (*RedisChannel.from_transport_options, "uncompressed")

    @property
    def do_restore(self) -> bool:
        """Whether a closed connection puts back what was not acknowledged: a doorbell is rung again anyway."""
        return bool(self.ack_emulation)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return _or_drop(self, lambda: super(OpsChannel, self)._brpop_read(**options))
        except ResponseError as error:
            if not self._mended(error, *self.active_queues):
                raise
        raise Empty

    def _receive(self) -> Any:
        return _or_drop(self, super()._receive)

    def _receive_one(self, c: Any) -> Any:
        """As kombu's own, which logs each thing that it cannot read, with a traceback."""
        try:
            response = c.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise
        if not isinstance(response, (list, tuple)):
            return None
        event = self._handle_message(c, response)
        if not bytes_to_str(event["type"]).endswith("message") or not event["data"]:
            return None
        return _or_drop(self, lambda: self._deliver_event(bytes_to_str(event["channel"]), event["data"]))

    def _deliver_event(self, channel: str, data: bytes) -> Any:
        exchange = channel.partition(".")[2] if channel.startswith("/") else channel
        return self._deliver_fanout_message(loads(bytes_to_str(data)), exchange.split("/", 1)[0])

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        self._ask(lambda: super(OpsChannel, self)._put(queue, message, **kwargs), queue)

    def _size(self, queue: str) -> int:
        return int(self._ask(lambda: super(OpsChannel, self)._size(queue), queue))

    def _queue_bind(self, exchange: str, *meta: Any) -> None:
        self._ask(lambda: super(OpsChannel, self)._queue_bind(exchange, *meta), exchange=exchange)

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        def members() -> Any:
            with self.conn_or_acquire() as client:
                return client.smembers(self.keyprefix_queue % exchange)

        rows = [tuple(row.decode("utf-8", "replace").split(self.sep)) for row in self._ask(members, exchange=exchange)]
        return [row for row in rows if len(row) == 3]

    def _ask(self, ask: Callable[[], Any], *queues: str, exchange: str | None = None) -> Any:
        try:
            return ask()
        except ResponseError as error:
            if not self._mended(error, *queues, exchange=exchange):
                raise
        return ask()

    def _mended(self, error: ResponseError, *queues: str, exchange: str | None = None) -> bool:
        """True when a key was of the wrong type, which nobody of ours has made, and is gone now."""
        if "WRONGTYPE" not in str(error):
            return False
        wanted = {self._q_for_pri(queue, step): b"list" for queue in queues for step in self.priority_steps}
        if exchange is not None:
            wanted[self.keyprefix_queue % exchange] = b"set"
            wanted[self.keyprefix_binding_permanent % exchange] = b"set"
            wanted[self.keyprefix_binding_deadlines] = b"zset"
        with self.conn_or_acquire() as client:
            for name, kind in wanted.items():
                if client.type(name) not in (kind, b"none"):
                    client.delete(name)
        board.count(Dropped.MALFORMED)
        return True


class OpsTransport(RedisTransport):
    """Redis or Valkey, read through :class:`OpsChannel`."""

    Channel = OpsChannel


def _or_drop(channel: Any, read: Callable[[], Any], clean_up: Callable[[], Any] | None = None) -> Any:
    """Read; what the broker's connection says passes, what a message makes the reader say is dropped."""
    try:
        return read()
    except Empty:
        raise
    except Exception as error:
        # kombu calls a KeyError a lost connection; here it is a message without something.
        if isinstance(error, (*channel.connection_errors, ResponseError)) and not isinstance(error, KeyError):
            raise
        board.count(Dropped.MALFORMED)
        log.debug("message_dropped", reason="unreadable", error=type(error).__name__)
        if clean_up is not None:
            clean_up()
        return True
