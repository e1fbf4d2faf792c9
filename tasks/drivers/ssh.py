"""Puts a release on hosts by ssh: a folder each, and a link ``current`` that is switched in one step.

On a host, under ``base``/APPLICATION: ``releases/VERSION-DEPLOYMENT-FENCE`` with ``.ops.json`` in it (job, attempt,
fence, digest), ``current`` beside them, ``.ops`` for the lock and the fence. While a host is worked on, a session there
holds the lock; each step holds the step's lock, and refuses where a newer fence has come: so nothing of an attempt that
was cut off overlaps with the next one, and nothing of it takes effect later.

Plan: what ``db.services.rollouts.body`` makes, with the private key opened in ``settings``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.drivers import rollout
from tasks.drivers.artifacts import pack
from tasks.drivers.rollout import Switched, Target, TargetError, Worker
from tasks.drivers.shell import BUSY, FENCED, Scripts, is_release, release_name

if TYPE_CHECKING:
    import asyncssh

#: A command has ended, and what it left in the background keeps its output open: so long it is still listened to.
DRAIN_SECONDS = 0.5
LOOK_SECONDS = 0.05
#: Beyond the limit that the host itself keeps.
LATE_SECONDS = 15.0
MAX_OUTPUT = 1024 * 1024
_MAX_LINE = 16 * 1024


@dataclass(frozen=True)
class Release:
    """What is to be put on each host: the same for all."""

    plan: dict[str, Any]
    archive: str | None
    digest: str
    key: asyncssh.SSHKey

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.plan["environment"])

    @property
    def name(self) -> str:
        given = self.environment
        return release_name(given["OPS_VERSION"], given["OPS_DEPLOYMENT_ID"], given["OPS_FENCE"])

    @property
    def about(self) -> str:
        """The one line of ``.ops.json``."""
        given = self.environment
        return json.dumps({
            "job": given["OPS_JOB_ID"], "attempt": int(given["OPS_ATTEMPT"]), "fence": int(given["OPS_FENCE"]),
            "deployment": int(given["OPS_DEPLOYMENT_ID"]), "version": given["OPS_VERSION"], "digest": self.digest,
        })  # fmt: skip


class SshTarget:
    """One host."""

    def __init__(self, host: dict[str, Any], release: Release, worker: Worker) -> None:
        self._host = host
        self._made = release
        self._plan = release.plan
        self._settings = release.plan["settings"]
        self._scripts = Scripts.of(release.plan)
        self._worker = worker
        self._connection: asyncssh.SSHClientConnection | None = None
        self._holder: asyncssh.SSHClientProcess[bytes] | None = None
        self._release = release.name
        self._previous: str | None = None

    @property
    def name(self) -> str:
        return str(self._host["name"])

    # What the rollout asks for ---------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        await self._take()
        if (found := await self._made_before()) is not None:
            self._release = found
            self._worker.say(f"{self.name}: {found} is there already")
            return
        try:
            await self._bring()
            for argv in self._plan["steps"]["prepare"]:
                await self._command("prepare", f"releases/.new-{self._release}", argv)
            await self._run(self._scripts.finish(self._release), "finishing the release")
        except (TargetError, asyncio.CancelledError):
            with suppress(TargetError):  # a full disk has room again
                await asyncio.shield(self._run(self._scripts.discard(self._release), "removing what is not finished"))
            raise

    async def switch(self) -> Switched:
        try:
            said = await self._run(self._scripts.switch(self._release), "switching")
        except TargetError as error:
            if not error.unreachable:
                raise
            said = await self._switched_after_all(error)
        self._previous = _word(said, "previous") or None
        return Switched(self._release, self._previous)

    async def start(self) -> None:
        await self._command("command", f"releases/{self._release}", self._plan["command"])

    async def health(self) -> None:
        gate = self._plan["health"]
        if gate["url"]:
            await rollout.wait_for_health(lambda: rollout.ask_http(gate["url"], self._host["address"], gate), gate)
        if self._plan["steps"]["health"]:
            await rollout.wait_for_health(self._ask_command, gate)

    async def bring_back(self) -> str | None:
        if self._connection is None or self._connection.is_closed():
            await self._take()
        to = self._host["good"] or self._previous
        said = await self._run(self._scripts.back(to), "switching back")
        if to is None:
            return None
        try:
            version = json.loads(said).get("version", "")
        except (ValueError, AttributeError):
            version = ""
        try:
            await self._command("command", f"releases/{to}", self._plan["command"], OPS_VERSION=str(version))
        except TargetError as error:
            raise TargetError(f"switched back to {to}, and then: {error}", release=to) from None
        return str(to)

    async def cleanup(self) -> None:
        names = [name for name in (await self._run(self._scripts.list_(), "listing")).split() if is_release(name)]
        kept = {self._release, self._previous, self._host["good"]}
        old = [name for name in names if name not in kept]
        room = max(0, int(self._settings["keep"]) - len(set(names) & kept))
        if old[room:]:
            await self._run(self._scripts.remove(old[room:]), "removing old releases")

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            with suppress(Exception):
                await asyncio.wait_for(self._connection.wait_closed(), 2)
            self._connection.abort()

    # How it is done --------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Connect, and hold the host until the connection ends."""
        if self._connection is not None:
            self._connection.abort()
        self._connection = await self._connect()
        self._holder = await self._open(self._scripts.hold(), eof=False)
        assert self._connection is not None
        try:
            wait = 2 * float(self._settings["lock_seconds"]) + LATE_SECONDS
            line = await asyncio.wait_for(self._holder.stdout.readline(), wait)
        except TimeoutError:
            raise TargetError("the host did not give its lock, nor refuse it", unreachable=True) from None
        except _errors() as error:
            raise TargetError(_reason(error), unreachable=True) from None
        if line.strip() == b"ready":
            return
        with suppress(Exception):
            await asyncio.wait_for(self._holder.wait(), LATE_SECONDS)
        said = _text(bytes(self._holder.collect_output()[1] or b""))
        code = self._holder.exit_status
        if code == BUSY:
            raise TargetError(f"another deployment has held this host for {self._settings['lock_seconds']:g} s")
        if code == FENCED:
            raise TargetError(f"refused: a newer deployment has been here (fence {said})", permanent=True)
        raise TargetError(f"the host cannot be taken: {said or f'exit code {code}'}", permanent=code is not None)

    async def _connect(self) -> asyncssh.SSHClientConnection:
        import asyncssh

        if not self._host["host_key"]:
            raise TargetError("no host key is pinned: ops infra host scan INFRA NAME --trust", permanent=True)
        keys = [asyncssh.import_public_key(line) for line in self._host["host_key"].splitlines()]
        seconds, alive = float(self._settings["connect_seconds"]), float(self._settings["keepalive_seconds"])
        try:
            return await asyncssh.connect(
                self._host["address"], int(self._host["port"]), username=self._settings["user"],
                client_keys=[self._made.key], known_hosts=(keys, [], []), config=None, agent_path=None,
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
        except _errors() as error:
            raise TargetError(_reason(error), unreachable=True) from None

    async def _open(self, script: str, *, eof: bool = True, sudo: bool = True) -> asyncssh.SSHClientProcess[bytes]:
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
        except _errors() as error:
            raise TargetError(_reason(error), unreachable=True) from None
        return process

    async def _run(self, script: str, what: str, *, sudo: bool = True) -> str:
        """A script of ours; what it said. Raises TargetError, ``unreachable`` where the connection was cut."""
        process = await self._open(script, sudo=sudo)
        said: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

        def keep(stream: str, data: bytes) -> None:
            said[stream] += data[: MAX_OUTPUT - len(said[stream])]

        code = await self._follow(process, keep, 2 * float(self._settings["lock_seconds"]) + 600)
        if code != 0:
            why = _text(bytes(said["stderr"])) or f"exit code {code}"
            raise TargetError(f"{what}: {why}", permanent=code in (FENCED,))
        return said["stdout"].decode("utf-8", "replace")

    async def _follow(self, process: asyncssh.SSHClientProcess[bytes], take: Any, seconds: float) -> int:
        """Pass output on until the program has ended; its exit code, negative for a signal."""

        async def pump(stream: str, reader: Any) -> None:
            while data := await reader.read(65536):
                take(stream, data)

        pumps = [
            asyncio.create_task(pump("stdout", process.stdout)),
            asyncio.create_task(pump("stderr", process.stderr)),
        ]
        end = asyncio.get_running_loop().time() + seconds
        drained: float | None = None
        try:
            while not all(each.done() for each in pumps):
                await asyncio.wait(pumps, timeout=LOOK_SECONDS)
                at = asyncio.get_running_loop().time()
                if process.exit_status is not None and drained is None:
                    drained = at + DRAIN_SECONDS
                if drained is not None and at > drained:
                    break
                if at > end:
                    raise TargetError(f"it has not ended within {seconds:g} s", unknown=True)
            for each in pumps:
                if each.done() and (error := each.exception()) is not None:
                    raise TargetError(_reason(error), unreachable=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait_closed(), DRAIN_SECONDS)
        finally:
            for each in pumps:
                each.cancel()
            process.close()
        if process.exit_status is None or process.exit_status < 0:
            if process.exit_signal is not None:
                raise TargetError(f"it was ended by SIG{process.exit_signal[0]}")
            raise TargetError("the connection was cut in the middle", unreachable=True)
        return int(process.exit_status)

    async def _command(self, step: str, folder: str, argv: list[str], **more: str) -> None:
        """One of the application's own commands; its output goes into the log."""
        seconds = int(self._plan["steps"]["timeout_seconds"])
        environment = self._made.environment | {"OPS_HOST": self.name, "OPS_RELEASE": self._release} | more
        process = await self._open(self._scripts.command(folder, argv, environment, seconds))
        lines = {stream: _Lines(self.name, stream, self._worker) for stream in ("stdout", "stderr")}
        try:
            wait = seconds + float(self._settings["lock_seconds"]) + LATE_SECONDS
            code = await self._follow(process, lambda stream, data: lines[stream].add(data), wait)
        except TargetError as error:
            if error.unreachable:
                raise TargetError(f"the connection was cut while {step} ran", unreachable=True) from None
            raise
        finally:
            for each in lines.values():
                each.close()
        if code == 124:
            raise TargetError(f"{step} took longer than {seconds} s", permanent=True)
        if code != 0:
            raise TargetError(f"{step} exited with {code}", permanent=True)

    async def _ask_command(self) -> str | None:
        try:
            await self._command("health", f"releases/{self._release}", self._plan["steps"]["health"])
        except TargetError as error:
            if error.unreachable:
                raise
            return str(error)
        return None

    async def _made_before(self) -> str | None:
        """A finished release of this deployment with the same content, made by an attempt before this one."""
        deployment = self._made.environment["OPS_DEPLOYMENT_ID"]
        said = await self._run(self._scripts.look(deployment), "looking around")
        for line in said.splitlines():
            word, _, rest = line.partition(" ")
            name, _, about = rest.partition(" ")
            if word != "release" or not is_release(name) or not re.search(rf"-{deployment}-[0-9]+$", name):
                continue
            with suppress(ValueError, AttributeError):
                if json.loads(about).get("digest") == self._made.digest:
                    return name
        return None

    async def _bring(self) -> None:
        archive = self._made.archive
        if archive is None:
            await self._run(self._scripts.unpack(self._release, self._made.about, None), "making the folder")
            return
        # Its own folder, closed to others but for whoever knows its name: what sudo becomes must read it.
        made = await self._run("{ set -eu; d=$(mktemp -d); chmod 711 \"$d\"; echo \"$d\"; exit 0; } </dev/null\n",
                               "making a folder for the upload", sudo=False)  # fmt: skip
        folder = made.strip()
        remote = f"{folder}/{os.urandom(16).hex()}.tar"
        try:
            await self._upload(archive, remote)
            await self._run(self._scripts.unpack(self._release, self._made.about, remote), "unpacking")
        finally:
            with suppress(TargetError):
                script = f"{{ rm -rf -- {shlex.quote(folder)}; exit 0; }} </dev/null\n"
                await asyncio.shield(self._run(script, "removing the upload", sudo=False))

    async def _upload(self, archive: str, remote: str) -> None:
        import asyncssh

        assert self._connection is not None
        try:
            async with self._connection.start_sftp_client() as sftp:
                await sftp.put(archive, remote)
                await sftp.chmod(remote, 0o644)
        except asyncssh.SFTPError as error:
            raise TargetError(f"uploading: {error.reason or type(error).__name__}") from None
        except _errors() as error:
            raise TargetError(_reason(error), unreachable=True) from None

    async def _switched_after_all(self, error: TargetError) -> str:
        """The connection was cut while it was switched: look what became of it, and do it again where it was not."""
        try:
            await self._take()
            return await self._run(self._scripts.switch(self._release), "switching")
        except TargetError as again:
            raise TargetError(
                f"{error}; then: {again}; nobody can tell whether it was switched", unknown=True
            ) from None


class _Lines:
    """A host's output, line by line, with its name before each."""

    def __init__(self, host: str, stream: str, worker: Worker) -> None:
        self._host, self._stream, self._worker = host, stream, worker
        self._rest = b""

    def add(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        if lines:
            shown = [f"{self._host}: {line.decode('utf-8', 'replace')}\n" for line in lines]
            self._worker.log(self._stream, "".join(shown))

    def close(self) -> None:
        if self._rest:
            self.add(b"\n")


def _word(said: str, name: str) -> str:
    for line in said.splitlines():
        if line.startswith(f"{name} "):
            return line.removeprefix(f"{name} ").strip()
    return ""


def _text(data: bytes) -> str:
    """What a host said, as one line of a bounded length."""
    return " ".join(data.decode("utf-8", "replace").split())[-300:]


def _errors() -> tuple[type[Exception], ...]:
    """What a connection may raise."""
    import asyncssh

    return (OSError, asyncssh.Error)


def _reason(error: BaseException) -> str:
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case TimeoutError():
            return "no answer in time"
        case OSError():
            return error.strerror or type(error).__name__
        case _:
            return str(getattr(error, "reason", "")) or type(error).__name__


async def make(plan: dict[str, Any], worker: Worker) -> Sequence[Target]:
    """The targets of a plan; the artifact is packed once for all of them."""
    try:
        import asyncssh
    except ImportError:
        raise TargetError("asyncssh is not installed on this worker: install ai-manage-ops[ssh]") from None
    try:
        key = asyncssh.import_private_key(plan["settings"]["key_value"])
    except (asyncssh.KeyImportError, ValueError):
        raise TargetError(f"secret {plan['settings']['key']} is no private key that can be read") from None
    archive, digest = None, ""
    if plan["artifact"] is not None:
        # Without a name, so that it is gone with this process however that ends; uploads read it through /proc.
        file = tempfile.TemporaryFile()  # noqa: SIM115
        digest = pack(plan["artifact"], plan["folder"], plan["environment"]["OPS_VERSION"], file)
        file.flush()
        archive = f"/proc/self/fd/{os.dup(file.fileno())}"
    release = Release(plan, archive, digest, key)
    return [SshTarget(host, release, worker) for host in plan["hosts"]]


if __name__ == "__main__":
    sys.exit(rollout.main(make))
