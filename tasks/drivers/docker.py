"""Runs an application's image on a Docker engine: the new container beside the old one, then the switch.

Plan::

    {"settings": {...}, "secrets": {...}, "image": "web:v1" or "web@sha256:...", "digest": "sha256:..." or null,
     "command": [...], "environment": {...}, "health": {...}, "names": {"OPS_VERSION": ..., ...}, "lock": "..."}

with the settings of :class:`db.drivers.DockerSettings`. What serves is what is in the application's network under its
alias; whoever wants to reach it (a proxy that publishes the port, another application) is in that network and asks for
the alias. A candidate is not in it until it has proved healthy. Steps:

1. fence: a smaller one than the engine has seen for this lock key is refused, here and again before the switch;
2. the image, pulled where it must be; by digest where one is known;
3. a candidate in a network of its own for looking at it: healthy by its image's HEALTHCHECK, by the application's
   address ({address} is the container's), or, where it has neither, by running on for a while;
4. the switch: the candidate joins the network under the alias, those before leave it, and are stopped;
5. of those some are kept, stopped, with their images; the rest is removed.

Where a step before the switch fails, or TERM comes, the candidate is removed and what served goes on. Values of the
environment go to the engine in the body of a request; whoever may inspect its containers can read them there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.drivers.engine import Refused, connected, find_image, gone, reason
from tasks.drivers.events import end, say

if TYPE_CHECKING:
    from docker.models.containers import Container

LABEL = "ops."
#: How much of a candidate's own output is shown when it is given up.
TAIL_LINES = 50


class Unknown(Exception):
    """The engine went away in the middle of the switch."""


class Stopped(Exception):
    """TERM came."""


@dataclass
class Driver:
    """One run of a plan."""

    plan: dict[str, Any]
    engine: Any
    candidate: Container | None = None
    #: From here on a TERM waits: the switch is short, and half of one would serve nobody.
    switching: bool = False
    switched: bool = False
    stopped: bool = False

    def run(self) -> int:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        try:
            self._deploy()
            self.switching = True  # a TERM from here on is too late
        except Unknown as error:
            self.switching = True
            return end("unknown", str(error))
        except Stopped:
            if self.switched:
                self.switching = True
                return end("ok", "switched; stopped before all of the containers before it were")
            return end("failed", f"stopped; what served goes on{self._give_up()}")
        except Refused as error:
            return end("failed", f"{error}{self._give_up()}")
        except (DockerException, RequestException, OSError) as error:
            why = reason(error)
            if self.switched:
                return end("ok", f"switched; then the engine said: {why}")
            return end("failed", f"the engine said: {why}{self._give_up()}")
        return end("ok")

    def _deploy(self) -> None:
        self._fence()
        image = find_image(self.engine, self.plan)
        self._remove_leftovers()
        self.candidate = self._start(image)
        self._wait_until_healthy(self.candidate)
        self._fence()
        # Not before: one that is started again and again cannot be seen to die.
        self.candidate.update(restart_policy={"Name": self._settings["restart"]})
        before = [each for each in self._ours() if self._serves(each)]
        self._switch(self.candidate, before)
        for each in before:
            each.stop(timeout=self._settings["stop_seconds"])
        self._keep()

    # The fence -------------------------------------------------------------------------------------------------------

    def _fence(self) -> None:
        """Leave our mark, an empty volume, and look at those of others: of two at once the smaller sees the larger."""
        mine = int(self.plan["names"]["OPS_FENCE"])
        lock = hashlib.sha256(self.plan["lock"].encode()).hexdigest()[:16]
        labels = {f"{LABEL}lock": self.plan["lock"], f"{LABEL}fence": str(mine)}
        self.engine.volumes.create(f"ops-fence-{lock}-{mine}", labels=labels)
        marks = {self._fence_of(each.attrs): each for each in self.engine.volumes.list(filters=self._mine())}
        seen = [*marks, *(self._fence_of({"Labels": each.labels}) for each in self._ours())]
        if (largest := max(seen)) > mine:
            raise Refused(f"a later deployment was here (fence {largest}); this one (fence {mine}) changes nothing")
        for number, mark in marks.items():
            if number < mine:
                with contextlib.suppress(*gone()):
                    mark.remove()

    @staticmethod
    def _fence_of(attrs: dict[str, Any]) -> int:
        text = (attrs.get("Labels") or {}).get(f"{LABEL}fence", "")
        return int(text) if text.isascii() and text.isdigit() else 0

    def _mine(self) -> dict[str, Any]:
        return {"label": f"{LABEL}lock={self.plan['lock']}"}

    def _ours(self) -> list[Container]:
        """Every container of this application here, running or not."""
        found: list[Container] = self.engine.containers.list(all=True, filters=self._mine(), ignore_removed=True)
        return found

    # The candidate ---------------------------------------------------------------------------------------------------

    def _start(self, image: str) -> Container:
        names = self.plan["names"]
        labels = {
            "lock": self.plan["lock"], "application": names["OPS_APPLICATION"], "version": names["OPS_VERSION"],
            "infrastructure": names["OPS_INFRASTRUCTURE"], "deployment": names["OPS_DEPLOYMENT_ID"],
            "job": names["OPS_JOB_ID"], "attempt": names["OPS_ATTEMPT"], "fence": names["OPS_FENCE"],
        }  # fmt: skip
        name = f"{names['OPS_APPLICATION']}-{names['OPS_DEPLOYMENT_ID']}-{names['OPS_FENCE']}"
        made: Container = self.engine.containers.create(
            image, self.plan["command"] or None, name=name, environment=self.plan["environment"], detach=True,
            labels={f"{LABEL}{key}": value for key, value in labels.items()}, network=self._network("candidates"),
            volumes=self._settings["volumes"],
        )  # fmt: skip
        self.candidate = made  # known before it is started, so that a TERM now removes it
        made.start()
        say(f"started {name} beside what serves")
        return made

    def _network(self, suffix: str = "") -> str:
        from docker.errors import NotFound

        name = str(self._settings["network"]) + (f"-{suffix}" if suffix else "")
        try:
            return str(self.engine.networks.get(name).name)
        except NotFound:
            self.engine.networks.create(name, driver="bridge", check_duplicate=True)
            return name

    def _wait_until_healthy(self, candidate: Container) -> None:
        gate = self.plan["health"]
        start = time.monotonic()
        attempts = int(gate["attempts"])
        why = ""
        for _ in range(attempts):
            candidate.reload()
            self._see_that_it_runs(candidate, start)
            health = candidate.attrs["State"].get("Health")
            if gate["url"] is not None:
                why = self._ask(gate["url"], candidate, float(gate["timeout_seconds"]))
            elif health is not None:
                why = "" if health["Status"] == "healthy" else f"it says {health['Status']}"
            else:
                left = self._settings["settle_seconds"] - (time.monotonic() - start)
                time.sleep(max(0.0, left))
                candidate.reload()
                self._see_that_it_runs(candidate, start)
                why = ""
            if not why:
                say("healthy")
                return
            if health is not None and health["Status"] == "unhealthy":
                break
            time.sleep(float(gate["interval_seconds"]))
        raise Refused(f"not healthy after {time.monotonic() - start:.0f} s: {why}")

    @staticmethod
    def _see_that_it_runs(candidate: Container, start: float) -> None:
        state = candidate.attrs["State"]
        if not state["Running"] or state.get("Restarting"):
            after = time.monotonic() - start
            raise Refused(f"the container exited with {state['ExitCode']} within {after:.1f} s of its start")

    def _ask(self, url: str, candidate: Container, timeout: float) -> str:
        """Why it is not healthy, or nothing."""
        from tasks import http

        there = candidate.attrs["NetworkSettings"]["Networks"].get(f"{self._settings['network']}-candidates") or {}
        try:
            answer = http.get(url.replace("{address}", there.get("IPAddress") or "0.0.0.0"), timeout=timeout)  # noqa: S104
        except http.HttpError as error:
            return str(error)
        return "" if 200 <= answer.status < 300 else f"it answered {answer.status}"

    # The switch ------------------------------------------------------------------------------------------------------

    def _serves(self, container: Container) -> bool:
        return self._settings["network"] in container.attrs["NetworkSettings"]["Networks"] and (
            container.status in ("running", "restarting", "paused")
        )

    def _switch(self, candidate: Container, before: list[Container]) -> None:
        """Join under the alias, then have the others leave: for a moment both serve, and at no moment nobody."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        network = self.engine.networks.get(self._network())
        self.switching = True
        if self.stopped:
            raise Stopped
        try:
            network.connect(candidate, aliases=[self._alias])
            self.switched = True
            for each in before:
                with contextlib.suppress(*gone()):
                    network.disconnect(each, force=True)
        except (DockerException, RequestException, OSError) as error:
            if self._is_switched(candidate):
                raise
            if self._is_switched(candidate) is None:
                raise Unknown(f"the engine went away in the middle of the switch: {reason(error)}") from None
            self.switched = False
            raise Refused(f"the switch was refused: {reason(error)}") from None
        finally:
            self.switching = False
        say(f"switched: {self._alias} is {candidate.name}")
        if self.stopped:
            raise Stopped

    def _is_switched(self, candidate: Container) -> bool | None:
        """Whether the candidate serves; None where nobody answers."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        try:
            candidate.reload()
        except (DockerException, RequestException, OSError):
            return None
        return self._settings["network"] in candidate.attrs["NetworkSettings"]["Networks"]

    @property
    def _alias(self) -> str:
        return str(self._settings["alias"] or self.plan["names"]["OPS_APPLICATION"])

    # What is left over -----------------------------------------------------------------------------------------------

    def _remove_leftovers(self) -> None:
        """Candidates of attempts that were killed: they run and do not serve. The fence says that none is in use."""
        for each in self._ours():
            if each.status in ("running", "restarting", "created", "paused") and not self._serves(each):
                say(f"removing {each.name}, which an earlier attempt has left behind")
                with contextlib.suppress(*gone()):
                    each.remove(force=True)

    def _keep(self) -> None:
        """Of those that are stopped the newest stay; their volumes stay in any case."""
        done = [each for each in self._ours() if each.status == "exited"]
        done.sort(key=lambda each: self._fence_of({"Labels": each.labels}), reverse=True)
        for each in done[self._settings["keep"] :]:
            with contextlib.suppress(*gone()):
                each.remove()

    def _give_up(self) -> str:
        """Remove the candidate, its last words first; what there is to say where it cannot be."""
        from docker.errors import DockerException, NotFound
        from requests.exceptions import RequestException

        self.stopped = self.switching = True  # another TERM changes nothing
        if self.candidate is None:
            return ""
        try:
            text = self.candidate.logs(tail=TAIL_LINES).decode("utf-8", "replace")
            if text:
                say(f"the last that {self.candidate.name} said:\n{text.rstrip()}")
            self.candidate.remove(force=True)
        except NotFound:
            pass
        except (DockerException, RequestException, OSError) as error:
            return f"; its container {self.candidate.name} may be left there: {reason(error)}"
        return ""

    @property
    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.plan["settings"]
        return settings


def main() -> int:
    plan = json.loads(sys.stdin.readline())
    try:
        from docker.errors import DockerException
        from requests.exceptions import RequestException
    except ImportError:
        return end("failed", "the driver `docker` needs an extra: pip install 'ai-manage-ops[docker]'")
    driver: Driver | None = None

    def stop(_number: int, _frame: object) -> None:
        if driver is None:
            raise Stopped
        if driver.switching:
            driver.stopped = True
            return
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    try:
        with connected(plan["settings"], plan["secrets"]) as engine:
            driver = Driver(plan, engine)
            return driver.run()
    except Stopped:
        return end("failed", "stopped before anything was changed")
    except (DockerException, RequestException, OSError) as error:
        return end("failed", f"the engine is not reached: {reason(error)}")


if __name__ == "__main__":
    sys.exit(main())
