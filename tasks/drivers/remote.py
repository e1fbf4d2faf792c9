"""One host by ssh: a connection with a pinned key, scripts on its shell's stdin, uploads.

Nothing of the worker's own ssh set-up counts: no agent, no configuration, no known hosts.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tasks.drivers.rollout import TargetError
from tasks.drivers.shell import FENCED

if TYPE_CHECKING:
    import asyncssh

#: A command has ended, and what it left in the background keeps its output open: so long it is still listened to.
DRAIN_SECONDS = 0.5
LOOK_SECONDS = 0.05
CHUNK_BYTES = 1024 * 1024
MAX_OUTPUT = 1024 * 1024
#: For a script of ours, beside its waiting for locks: unpacking takes longest.
SCRIPT_SECONDS = 600.0


class Remote:
    """The connection to one host, as often as it is made anew. ``settings`` are those of ``SshSettings``."""

    def __init__(self, host: dict[str, Any], settings: dict[str, Any], key: asyncssh.SSHKey) -> None:
        self._host = host
        self._settings = settings
        self._key = key
        self._connection: asyncssh.SSHClientConnection | None = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._connection is not None:
            self._connection.abort()

    async def close(self) -> None:
        """End the connection, in an orderly way if that is soon. Raises nothing."""
        if self._connection is not None:
            self._connection.close()
            with suppress(Exception):
                await asyncio.wait_for(self._connection.wait_closed(), 2)
            self._connection.abort()

    async def connect(self) -> None:
        """Connect anew. Raises TargetError."""
        import asyncssh

        self.abort()
        if not self._host["host_key"]:
            raise TargetError("no host key is pinned: ops infra host scan INFRA NAME --trust", permanent=True)
        try:
            keys = [asyncssh.import_public_key(line) for line in self._host["host_key"].splitlines()]
        except (asyncssh.KeyImportError, ValueError):
            raise TargetError(
                "the pinned host key is none: ops infra host scan INFRA NAME --trust", permanent=True
            ) from None
        seconds, alive = float(self._settings["connect_seconds"]), float(self._settings["keepalive_seconds"])
        try:
            self._connection = await asyncssh.connect(
                self._host["address"], int(self._host["port"]), username=self._settings["user"],
                client_keys=[self._key], known_hosts=(keys, [], []), config=None, agent_path=None,
                preferred_auth="publickey", connect_timeout=seconds, login_timeout=seconds,
                keepalive_interval=alive, keepalive_count_max=3, encoding=None,
            )  # fmt: skip
        except asyncssh.HostKeyNotVerifiable:
            raise TargetError(
                "its host key is not the pinned one: somebody may stand in for it, or it was set up anew; look, then "
                "ops infra host scan INFRA NAME --trust", permanent=True,
            ) from None  # fmt: skip
        except asyncssh.PermissionDenied:
            raise TargetError(f"it refuses user {self._settings['user']} with this key", permanent=True) from None
        except errors() as error:
            raise TargetError(reason_of(error), unreachable=True) from None

    async def open(self, script: str, *, eof: bool = True, sudo: bool = True) -> asyncssh.SSHClientProcess[bytes]:
        command = "exec /bin/sh -s"
        if sudo and self._settings["sudo"]:
            command = f"exec sudo -n -u {shlex.quote(self._settings['sudo'])} -- /bin/sh -s"
        if self._connection is None or self._connection.is_closed():
            raise TargetError("the connection was lost", unreachable=True)
        try:
            process = await self._connection.create_process(command, encoding=None)
            process.stdin.write(script.encode())
            if eof:
                process.stdin.write_eof()
        except errors() as error:
            raise TargetError(reason_of(error), unreachable=True) from None
        return process

    async def run(self, script: str, what: str, *, sudo: bool = True) -> str:
        """A script of ours; what it said. Raises TargetError, ``unreachable`` where the connection was cut."""
        process = await self.open(script, sudo=sudo)
        said: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

        def keep(stream: str, data: bytes) -> None:
            said[stream] += data[: MAX_OUTPUT - len(said[stream])]

        code = await self.follow(process, keep, 2 * float(self._settings["lock_seconds"]) + SCRIPT_SECONDS)
        if code != 0:
            why = text_of(bytes(said["stderr"])) or f"exit code {code}"
            raise TargetError(f"{what}: {why}", permanent=code in (FENCED,))
        return said["stdout"].decode("utf-8", "replace")

    async def follow(
        self, process: asyncssh.SSHClientProcess[bytes], take: Callable[[str, bytes], None], seconds: float
    ) -> int:
        """Pass output on until the program has ended; its exit code, negative for a signal."""

        async def pump(stream: str, reader: Any) -> None:
            while data := await reader.read(65536):
                take(stream, data)

        pumps = [
            asyncio.create_task(pump("stdout", process.stdout)),
            asyncio.create_task(pump("stderr", process.stderr)),
        ]
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        drained: float | None = None
        try:
            while not all(each.done() for each in pumps):
                await asyncio.wait(pumps, timeout=LOOK_SECONDS)
                at = loop.time()
                if process.exit_status is not None and drained is None:
                    drained = at + DRAIN_SECONDS
                if drained is not None and at > drained:
                    break
                if at > end:
                    raise TargetError(f"it has not ended within {seconds:g} s", unknown=True)
            for each in pumps:
                if each.done() and (error := each.exception()) is not None:
                    raise TargetError(reason_of(error), unreachable=True)
            # It may have closed its output and go on; and on a busy host how it ended is told a while after that.
            left = DRAIN_SECONDS if process.exit_status is not None else max(0.0, end - loop.time())
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait_closed(), left)
            if process.exit_status is None and loop.time() >= end:
                raise TargetError(f"it has not ended within {seconds:g} s", unknown=True)
        finally:
            for each in pumps:
                each.cancel()
            process.close()
        if process.exit_status is None or process.exit_status < 0:
            if process.exit_signal is not None:
                raise TargetError(f"it was ended by SIG{process.exit_signal[0]}")
            raise TargetError("the connection was cut in the middle", unreachable=True)
        return int(process.exit_status)

    async def upload(self, archive: int, remote: str) -> None:
        import asyncssh

        assert self._connection is not None
        try:
            async with self._connection.start_sftp_client() as sftp:
                async with sftp.open(remote, "wb") as file:
                    at = 0
                    while data := os.pread(archive, CHUNK_BYTES, at):
                        await file.write(data)
                        at += len(data)
                await sftp.chmod(remote, 0o644)
        except asyncssh.SFTPError as error:
            raise TargetError(f"uploading: {error.reason or type(error).__name__}") from None
        except errors() as error:
            raise TargetError(reason_of(error), unreachable=True) from None


def text_of(data: bytes | str | None) -> str:
    """What a host said, as one line of a bounded length."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data or ""
    return " ".join(text.split())[-300:]


def errors() -> tuple[type[Exception], ...]:
    """What a connection may raise."""
    import asyncssh

    return (OSError, asyncssh.Error)


def reason_of(error: BaseException) -> str:
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case TimeoutError():
            return "no answer in time"
        case OSError():
            return error.strerror or type(error).__name__
        case _:
            return str(getattr(error, "reason", "")) or type(error).__name__
