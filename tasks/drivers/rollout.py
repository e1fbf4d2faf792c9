"""The rollout engine of drivers that work on hosts: batches, a gate after each, and what follows where hosts say no.

A driver gives it one :class:`Target` per host and the plan's ``rollout`` (see ``db.rollouts.Rollout``). On each host:
``prepare``, ``switch``, ``start``, ``health``, then ``cleanup``. Before the first of them, and before a host is brought
back, the worker has stored that it may be touched: whatever is killed then, nobody takes it for untouched.

On TERM no further host is begun. Hosts that are not switched yet are left as they were; those that are may finish
within ``FINISH_SECONDS`` and otherwise stay switched, which is what is said of them.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from db.states import HostStatus
from tasks import http
from tasks.drivers.command import end_with_supervisor
from tasks.drivers.events import emit
from tasks.drivers.reporting import Refused, Worker

#: What may pass by itself is tried again after so many seconds, while nothing is switched.
AGAIN_SECONDS = (1.0, 3.0)
#: After TERM.
FINISH_SECONDS = 15.0
_NAMED = 20
_BAD = (HostStatus.FAILED, HostStatus.UNREACHABLE, HostStatus.UNKNOWN)


class TargetError(Exception):
    """A host said no, or could not be asked; the message is a line for a person and holds no secret.

    ``permanent``: trying again changes nothing. ``unreachable``: there is no connection. ``unknown``: the connection
    was cut in the middle, and nobody can tell whether it took effect. ``release``: what runs there all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        unreachable: bool = False,
        unknown: bool = False,
        release: str | None = None,
    ) -> None:
        super().__init__(message)
        self.release = release
        self.permanent = permanent
        self.unreachable = unreachable
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Switched:
    """What a switch did: the release that runs now, and the one before (None: there was none)."""

    release: str
    previous: str | None


class Target(Protocol):
    """One host. Every method raises TargetError, and nothing else that is expected."""

    @property
    def name(self) -> str: ...

    async def prepare(self) -> None:
        """Connect, take the host's lock, and bring the release there. What runs is not touched. May be repeated."""

    async def switch(self) -> Switched:
        """Make the new release the current one; where it is already, say what was before it."""

    async def start(self) -> None:
        """Start what was switched to, where the switch itself has not."""

    async def health(self) -> None:
        """Return when it is healthy; raise when it is not and the gate's patience has ended."""

    async def bring_back(self) -> str | None:
        """Make the last good release the current one again and start it; the one that runs now, None: nothing.
        ``health`` then asks about that one."""

    async def cleanup(self) -> None:
        """Remove what is needed no more, after a success."""

    async def close(self) -> None:
        """Let go of the host, whatever has happened; ``bring_back`` takes it again. May be repeated. Raises nothing."""


@dataclass
class Known:
    """One host, as far as this run has come."""

    target: Target
    batch: int
    status: HostStatus = HostStatus.PENDING
    message: str | None = None
    switched: Switched | None = None
    #: It was, or may have been, switched by this run.
    touched: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Rollout:
    """One run over all targets. ``policy`` is the plan's ``rollout``."""

    def __init__(self, targets: Sequence[Target], policy: dict[str, Any], worker: Worker) -> None:
        self.worker = worker
        self.policy = policy
        size = batch_size(policy, len(targets))
        self.hosts = [Known(target, 1 + index // size) for index, target in enumerate(targets)]
        self.batches = [self.hosts[start : start + size] for start in range(0, len(targets), size)]
        self._slots = asyncio.Semaphore(int(policy["at_once"]))
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin nothing more; what is switched may finish for a while."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        for host in self.hosts:
            if host.task is not None and not host.touched:
                host.task.cancel()
        asyncio.get_running_loop().call_later(FINISH_SECONDS, self._cut)

    def _cut(self) -> None:
        for host in self.hosts:
            if host.task is not None:
                host.task.cancel()

    async def run(self) -> tuple[bool, str]:
        """All batches; whether every host is healthy, and a line that says how it went."""
        try:
            for number, batch in enumerate(self.batches, 1):
                if number > 1 and not await self._pause():
                    break
                await self._batch(number, batch)
                if self._stopping.is_set() or self._failures() > int(self.policy["max_failures"]):
                    break
            back = self.policy["on_failure"] == "rollback" and self._failures() > int(self.policy["max_failures"])
            if back and not self._stopping.is_set():
                await self._bring_back()
            self._skip_the_rest()
        finally:
            await asyncio.gather(*(host.target.close() for host in self.hosts), return_exceptions=True)
        return all(host.status is HostStatus.HEALTHY for host in self.hosts), self.summary()

    async def _pause(self) -> bool:
        """Between two batches; False: the end was asked for."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), float(self.policy["pause_seconds"]))
        return not self._stopping.is_set()

    async def _batch(self, number: int, batch: list[Known]) -> None:
        names = ", ".join(host.target.name for host in batch[:_NAMED]) + (", ..." if len(batch) > _NAMED else "")
        self.worker.say(f"batch {number} of {len(self.batches)}: {names}")
        for host in batch:
            host.status = HostStatus.RUNNING
        await self.worker.report(
            *(
                {"name": host.target.name, "status": host.status, "batch": number, "message": "preparing, not switched"}
                for host in batch
            )
        )  # stored before any of them is touched
        if self._stopping.is_set():
            for host in batch:
                self._tell(host, HostStatus.SKIPPED, "stopped before it was begun")
            return
        await self._each(batch, self._deploy)

    async def _each(self, hosts: Sequence[Known], work: Callable[[Known], Awaitable[None]]) -> None:
        async def one(host: Known) -> None:
            async with self._slots:
                try:
                    await work(host)
                finally:
                    # Whoever holds one host and waits for another may wait for somebody who does the reverse.
                    await host.target.close()

        for host in hosts:
            host.task = asyncio.create_task(one(host))
        results = await asyncio.gather(*(host.task for host in hosts if host.task), return_exceptions=True)
        for host, result in zip(hosts, results, strict=True):
            host.task = None
            if isinstance(result, asyncio.CancelledError):
                self._tell_cut(host)
            elif isinstance(result, BaseException):
                raise result

    def _tell_cut(self, host: Known) -> None:
        """The end was asked for while this host was worked on."""
        if not host.touched:
            self._tell(host, HostStatus.SKIPPED, "stopped before it was switched")
        elif host.switched is None or host.status is HostStatus.RUNNING:
            self._tell(host, HostStatus.UNKNOWN, "stopped in the middle of the switch")
        else:
            self.worker.say(f"{host.target.name}: stopped before it was known to be healthy")

    async def _deploy(self, host: Known) -> None:
        target = host.target
        try:
            await self._prepare(host)
            await self.worker.report({"name": target.name, "status": host.status, "message": "switching"})
            host.touched = True
            host.switched = await target.switch()
            self._tell(host, HostStatus.SWITCHED, "its health is not known yet")
            await target.start()
            await target.health()
        except TargetError as error:
            status = HostStatus.UNKNOWN if error.unknown else HostStatus.FAILED
            if error.unreachable and not host.touched:
                status = HostStatus.UNREACHABLE
            host.touched = host.touched and (host.switched is not None or error.unknown)
            if host.switched is not None:  # what runs there is known, whatever it said
                status = HostStatus.FAILED
            self._tell(host, status, str(error))
            return
        self._tell(host, HostStatus.HEALTHY, None)
        try:
            await target.cleanup()
        except TargetError as error:
            self.worker.say(f"{target.name}: old releases could not be removed: {error}")

    async def _prepare(self, host: Known) -> None:
        for pause in (*AGAIN_SECONDS, None):
            try:
                await host.target.prepare()
            except TargetError as error:
                if error.permanent or pause is None:
                    raise
                self.worker.say(f"{host.target.name}: {error}; trying again in {pause:g} s")
                await asyncio.sleep(pause)
            else:
                return

    async def _bring_back(self) -> None:
        """Batch by batch, the last one first: what this run has switched, or may have."""
        for batch in reversed(self.batches):
            touched = [host for host in batch if host.touched]
            if not touched or self._stopping.is_set():
                continue
            self.worker.say(f"bringing back: {', '.join(host.target.name for host in touched)}")
            for host in touched:
                host.message = f"{host.message}; " if host.message else ""
                host.status = HostStatus.RUNNING
            await self.worker.report(
                *(
                    {"name": host.target.name, "status": host.status, "message": f"{host.message}bringing it back"}
                    for host in touched
                )
            )
            await self._each(touched, self._roll_back)

    async def _roll_back(self, host: Known) -> None:
        why = host.message or ""
        try:
            release = await host.target.bring_back()
        except TargetError as error:
            status = HostStatus.UNKNOWN if error.unknown or host.switched is None else HostStatus.FAILED
            now = {"release": error.release} if error.release is not None else {}
            self._tell(host, status, f"{why}it could not be brought back: {error}", **now)
            return
        host.switched = None
        try:
            if release is not None:
                await host.target.health()
        except TargetError as error:
            self._tell(host, HostStatus.FAILED, f"{why}back to {release}, and then: {error}", release=release)
        except asyncio.CancelledError:  # the end was asked for; what runs there is known
            text = f"{why}back to {release}; stopped before that was known to be healthy"
            self._tell(host, HostStatus.FAILED, text, release=release)
        else:
            self._tell(host, HostStatus.ROLLED_BACK, f"{why}back to {release or 'nothing'}", release=release)

    def _tell(self, host: Known, status: HostStatus, message: str | None, **more: Any) -> None:
        host.status, host.message = status, message
        known: dict[str, Any] = {"name": host.target.name, "status": status, "message": message}
        if host.switched is not None:
            known |= {"release": host.switched.release, "previous_release": host.switched.previous}
        self.worker.report(known | more)
        if message is not None:
            self.worker.say(f"{host.target.name}: {status.value.replace('_', ' ')}: {message}")
        else:
            self.worker.say(f"{host.target.name}: {status.value}")

    def _skip_the_rest(self) -> None:
        rest = [host for host in self.hosts if host.status is HostStatus.PENDING]
        for host in rest:
            host.status, host.message = HostStatus.SKIPPED, "the rollout ended before it"
        if rest:
            said = {"status": HostStatus.SKIPPED, "message": "the rollout ended before it"}
            self.worker.report(*({"name": host.target.name} | said for host in rest))

    def _failures(self) -> int:
        return sum(host.status in _BAD for host in self.hosts)

    def summary(self) -> str:
        """How many hosts came to what, the bad ones by name."""
        parts = []
        for status in HostStatus:
            names = [host.target.name for host in self.hosts if host.status is status]
            if names and status is HostStatus.HEALTHY:
                parts.append(f"{len(names)} of {len(self.hosts)} hosts healthy")
            elif names:
                shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
                parts.append(f"{len(names)} {status.value.replace('_', ' ')} ({shown})")
        return "; ".join(parts)


def batch_size(policy: dict[str, Any], count: int) -> int:
    """How many hosts a batch has: at least one; a percentage is rounded up."""
    if policy["strategy"] == "all":
        return max(1, count)
    wanted = policy["batch"]
    if isinstance(wanted, str):
        return max(1, -(-count * int(wanted.removesuffix("%")) // 100))
    return max(1, int(wanted))


async def wait_for_health(ask: Callable[[], Awaitable[str | None]], gate: dict[str, Any]) -> None:
    """Ask until the answer is None (healthy); raises TargetError with the last reason when patience has ended."""
    attempts, reason = int(gate["attempts"]), None
    for attempt in range(1, attempts + 1):
        reason = await ask()
        if reason is None:
            return
        if attempt < attempts:
            await asyncio.sleep(float(gate["interval_seconds"]))
    raise TargetError(f"not healthy after {attempts} attempts: {reason}", permanent=True)


async def ask_http(url: str, address: str, gate: dict[str, Any]) -> str | None:
    """One look at a host's health: None, or why it is not healthy. ``{host}`` in the URL stands for the address."""
    host = f"[{address}]" if ":" in address else address
    try:
        answer = await asyncio.to_thread(http.get, url.replace("{host}", host), timeout=float(gate["timeout_seconds"]))
    except http.HttpError as error:
        return str(error)
    return None if 200 <= answer.status < 300 else f"it answered {answer.status}"


def main(make: Callable[[dict[str, Any], Worker], Awaitable[Sequence[Target]]]) -> int:
    """Run a driver: ``make`` gives the targets of a plan, or raises TargetError where nothing can be done at all."""

    async def run() -> int:
        worker = Worker()
        plan = await worker.plan()
        try:
            rollout = Rollout(await make(plan, worker), plan["rollout"], worker)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, rollout.stop)
            done, message = await rollout.run()
        except (TargetError, Refused) as error:
            done, message = False, str(error) or "what was said of a host could not be stored; stopped"
        emit({"event": "end", "outcome": "ok" if done else "failed", "message": message})
        return 0 if done else 1

    end_with_supervisor()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # until there is something to stop
    return asyncio.run(run())
