"""Puts a release on hosts by ssh: a folder each, and a link ``current`` that is switched in one step.

On a host, under ``base``/APPLICATION: ``releases/VERSION-DEPLOYMENT-FENCE`` with ``.ops.json`` in it (job, attempt,
fence, digest), ``current`` beside them, ``.ops`` for the lock and the fence. While a host is worked on, a session there
holds the lock; each step holds the step's lock, and refuses where a newer fence has come: so nothing of an attempt that
was cut off overlaps with the next one, and nothing of it takes effect later.

Plan: what ``db.services.rollouts.body`` makes, with the private key opened in ``settings``.
"""

from __future__ import annotations

import asyncio
import codecs
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
from tasks.drivers.artifacts import bring
from tasks.drivers.remote import Remote, errors, reason_of, text_of
from tasks.drivers.reporting import Worker
from tasks.drivers.rollout import Switched, Target, TargetError
from tasks.drivers.shell import BUSY, FENCED, Scripts, is_release, release_name
from tasks.masking import Masker

if TYPE_CHECKING:
    import asyncssh

#: Beyond the limit that the host itself keeps.
LATE_SECONDS = 15.0
_MAX_LINE = 16 * 1024


@dataclass(frozen=True)
class Release:
    """What is to be put on each host: the same for all."""

    plan: dict[str, Any]
    #: The open file of the tar, None: there is nothing to bring.
    archive: int | None
    digest: str
    key: asyncssh.SSHKey
    #: Knows every value that commands are given, the secret ones among them.
    masker: Masker

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
        self._remote = Remote(host, self._settings, release.key)
        self._holder: asyncssh.SSHClientProcess[bytes] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._release = release.name
        self._previous: str | None = None
        #: Of the release that runs, where it is another than the plan's.
        self._version: dict[str, str] = {}

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
            await self._remote.run(self._scripts.finish(self._release), "finishing the release")
        except (TargetError, asyncio.CancelledError):
            with suppress(TargetError):  # a full disk has room again
                await asyncio.shield(
                    self._remote.run(self._scripts.discard(self._release), "removing what is not finished")
                )
            raise

    async def switch(self) -> Switched:
        try:
            said = await self._remote.run(self._scripts.switch(self._release), "switching")
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
        if not self._remote.is_open:
            await self._take()
        to = self._host["good"] or self._previous
        said = await self._remote.run(self._scripts.back(to), "switching back")
        if to is None:
            return None
        try:
            version = json.loads(said).get("version", "")
        except (ValueError, AttributeError):
            version = ""
        self._release, self._version = str(to), {"OPS_VERSION": str(version)}  # from here on it is asked about that one
        try:
            await self.start()
        except TargetError as error:
            raise TargetError(f"switched back to {to}, and then: {error}", release=to) from None
        return str(to)

    async def cleanup(self) -> None:
        names = [
            name for name in (await self._remote.run(self._scripts.list_(), "listing")).split() if is_release(name)
        ]
        kept = {self._release, self._previous, self._host["good"]}
        old = [name for name in names if name not in kept]
        room = max(0, int(self._settings["keep"]) - len(set(names) & kept))
        if old[room:]:
            await self._remote.run(self._scripts.remove(old[room:]), "removing old releases")

    async def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        await self._remote.close()

    # How it is done --------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Connect, and hold the host until the connection ends."""
        if self._beating is not None:
            self._beating.cancel()
        await self._remote.connect()
        self._holder = await self._remote.open(self._scripts.hold(), eof=False)
        try:
            wait = 2 * float(self._settings["lock_seconds"]) + LATE_SECONDS
            line = await asyncio.wait_for(self._holder.stdout.readline(), wait)
        except TimeoutError:
            raise TargetError("the host did not give its lock, nor refuse it", unreachable=True) from None
        except errors() as error:
            raise TargetError(reason_of(error), unreachable=True) from None
        if line.strip() == b"ready":
            self._beating = asyncio.create_task(self._beat(self._holder))
            return
        said, code = "", None
        with suppress(Exception):
            ended = await asyncio.wait_for(self._holder.wait(), LATE_SECONDS)
            said, code = text_of(ended.stderr), ended.exit_status
        if code == BUSY:
            raise TargetError(f"another deployment has held this host for {self._settings['lock_seconds']:g} s")
        if code == FENCED:
            raise TargetError(f"refused: a newer deployment has been here (fence {said})", permanent=True)
        raise TargetError(f"the host cannot be taken: {said or f'exit code {code}'}", permanent=code is not None)

    async def _beat(self, holder: asyncssh.SSHClientProcess[bytes]) -> None:
        """Tell the host that somebody is there still."""
        with suppress(*errors()):  # a connection that is gone is noticed by whoever needs it
            while True:
                await asyncio.sleep(float(self._settings["keepalive_seconds"]))
                holder.stdin.write(b"here\n")
                await holder.stdin.drain()

    async def _command(self, step: str, folder: str, argv: list[str]) -> None:
        """One of the application's own commands; its output goes into the log."""
        seconds = int(self._plan["steps"]["timeout_seconds"])
        environment = (
            self._made.environment | {"OPS_HOST": self.name, "OPS_RELEASE_FOLDER": self._release} | self._version
        )
        process = await self._remote.open(self._scripts.command(folder, argv, environment, seconds))
        masker = self._made.masker
        lines = {stream: Lines(self.name, stream, self._worker, masker) for stream in ("stdout", "stderr")}
        try:
            wait = seconds + float(self._settings["lock_seconds"]) + LATE_SECONDS
            code = await self._remote.follow(process, lambda stream, data: lines[stream].add(data), wait)
        except TargetError as error:
            if error.unreachable:
                raise TargetError(f"the connection was cut while {step} ran", unreachable=True) from None
            raise
        except asyncio.CancelledError:
            # Closing its session alone would let it run on.
            try:
                await asyncio.shield(self._remote.run(self._scripts.end(), f"ending {step}"))
            except TargetError as error:
                self._worker.say(f"{self.name}: {error}")
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
        said = await self._remote.run(self._scripts.look(deployment), "looking around")
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
            await self._remote.run(self._scripts.unpack(self._release, self._made.about, None), "making the folder")
            return
        made = await self._remote.run(self._scripts.inbox(), "making a folder for the upload", sudo=False)
        folder = made.strip()
        remote = f"{folder}/{os.urandom(16).hex()}.tar"
        try:
            await self._remote.upload(archive, remote)
            await self._remote.run(self._scripts.unpack(self._release, self._made.about, remote), "unpacking")
        finally:
            with suppress(TargetError):
                script = f"{{ rm -rf -- {shlex.quote(folder)}; exit 0; }} </dev/null\n"
                await asyncio.shield(self._remote.run(script, "removing the upload", sudo=False))

    async def _switched_after_all(self, error: TargetError) -> str:
        """The connection was cut while it was switched: look what became of it, and do it again where it was not."""
        try:
            await self._take()
            return await self._remote.run(self._scripts.switch(self._release), "switching")
        except TargetError as again:
            raise TargetError(
                f"{error}; then: {again}; nobody can tell whether it was switched", unknown=True
            ) from None


class Lines:
    """A host's output, line by line, with its name before each. A line that does not end is cut, but through none of
    the values that ``masker`` knows: in two lines nobody would find them."""

    def __init__(self, host: str, stream: str, worker: Worker, masker: Masker) -> None:
        self._host, self._stream, self._worker, self._masker = host, stream, worker, masker
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def add(self, data: bytes, *, end: bool = False) -> None:
        *lines, self._rest = (self._rest + self._decoder.decode(data, end)).split("\n")
        if len(self._rest) > _MAX_LINE:
            _, kept = self._masker.split(self._rest)
            if cut := len(self._rest) - len(kept):
                lines.append(self._rest[:cut])
            self._rest = kept
        if end and self._rest:
            lines.append(self._rest)
        if lines:
            self._worker.log(self._stream, "".join(f"{self._host}: {line}\n" for line in lines))

    def close(self) -> None:
        self.add(b"", end=True)


def _word(said: str, name: str) -> str:
    for line in said.splitlines():
        if line.startswith(f"{name} "):
            return line.removeprefix(f"{name} ").strip()
    return ""


async def make(plan: dict[str, Any], worker: Worker) -> Sequence[Target]:
    """The targets of a plan; the artifact is packed once for all of them."""
    try:
        import asyncssh
    except ImportError:
        raise TargetError("asyncssh is not installed on this worker: install ai-manage-ops[ssh]") from None
    try:
        key = asyncssh.import_private_key(plan["settings"]["key"])
    except (asyncssh.KeyImportError, ValueError):
        raise TargetError("the secret that the setting `key` names is no private key that can be read") from None
    archive, digest = None, ""
    if plan["artifact"] is not None:
        # Without a name, so that it is gone with this process however that ends.
        file = tempfile.TemporaryFile()  # noqa: SIM115
        digest = bring(plan["artifact"], plan["folder"], file)
        file.flush()
        archive = os.dup(file.fileno())
    release = Release(plan, archive, digest, key, Masker(plan["environment"].values()))
    return [SshTarget(host, release, worker) for host in plan["hosts"]]


if __name__ == "__main__":
    sys.exit(rollout.main(make))
