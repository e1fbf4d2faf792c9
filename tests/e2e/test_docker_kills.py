"""kill -9 of the worker in the middle of a deployment to a real Docker engine: at no moment does nobody serve, it ends
truthfully, and a retry leaves one container that serves and nothing of the attempt that was killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from db.connection import get_db_session
from db.service import DatabaseService
from db.services import deployments
from tests.e2e.platform import Deployed, Platform
from tests.e2e.process import until
from tests.tasks.test_driver_docker import IMAGE, engine

__all__ = ["engine"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: Healthy once the file ``healthy`` is there; ends at TERM once the file ``stop`` is.
SERVE = """
import http.server, os, pathlib, signal, sys, threading, time
def leave(*_):
    def wait():
        while not pathlib.Path("/gate/stop").exists():
            time.sleep(0.05)
        os._exit(0)
    pathlib.Path("/gate/stopping").touch()
    threading.Thread(target=wait).start()
signal.signal(signal.SIGTERM, leave)
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if pathlib.Path("/gate/healthy").exists() else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("", 8000), H).serve_forever()
"""


@dataclass
class Site:
    """An application whose versions are containers of an engine. Each of them serves under the alias of its name."""

    platform: Platform
    engine: Any
    name: str
    gate: Path
    app: int
    infra: int
    first: Deployed = field(init=False)

    def deploy(self, version: str) -> Deployed:
        with get_db_session() as session:
            made = deployments.create(
                session, user_id=self.platform.user, application_id=self.app, infrastructure_id=self.infra,
                version=version,
            )  # fmt: skip
            session.flush()
            return Deployed(made.id, str(made.job_id), deployments.lock_key(made))

    def retry(self, deployed: Deployed) -> Deployed:
        with get_db_session() as session:
            made = deployments.retry(session, deployment_id=deployed.id)
            return Deployed(made.id, str(made.job_id), deployed.key)

    def containers(self) -> dict[str, tuple[str, bool]]:
        """By the job that started it: its state, and whether it serves."""
        found = {}
        for each in self.engine.containers.list(all=True, filters={"label": f"ops.lock={self.name}/{self.name}"}):
            each.reload()
            network = each.attrs["NetworkSettings"]["Networks"].get(self.name)
            found[each.labels["ops.job"]] = (
                each.status,
                network is not None and self.name in (network["Aliases"] or []),
            )
        return found

    def open(self, what: str) -> None:
        (self.gate / what).touch()

    def remove(self) -> None:
        of_it = {"label": f"ops.lock={self.name}/{self.name}"}
        for each in self.engine.containers.list(all=True, filters=of_it, ignore_removed=True):
            each.remove(force=True)
        for each in self.engine.volumes.list(filters=of_it):
            each.remove(force=True)
        for each in self.engine.networks.list(names=[self.name]):  # and the candidates', whose name begins with it
            each.remove()
        for version in VERSIONS:
            self.engine.images.remove(f"{self.name}:{version}", noprune=True)


VERSIONS = ("v1", "v2")


@pytest.fixture
def site(platform: Platform, engine: Any, tmp_path: Path) -> Iterator[Site]:
    """Version v1 serves."""
    name = f"ops-test-{uuid4().hex[:10]}"
    for version in VERSIONS:
        engine.images.get(IMAGE).tag(name, version)
    gate = tmp_path / "gate"
    gate.mkdir(mode=0o777)
    with get_db_session() as session:
        service = DatabaseService(session)
        app = service.register_application(
            name, ["python3", "-c", SERVE], health_check_url="http://{address}:8000/",
            configuration={
                "artifact": f"image:{name}", "health": {"interval_seconds": 0.2, "timeout_seconds": 2, "attempts": 500}
            },
        )  # fmt: skip
        settings = {
            "network": name, "volumes": [f"{gate}:/gate"], "stop_seconds": 60, "pull": "never",
            "host": os.environ.get("DOCKER_HOST"),
        }  # fmt: skip
        infra = service.register_infrastructure(name, platform.user, driver="docker", settings=settings)
        made = Site(platform, engine, name, gate, app.id, infra.id)
    try:
        made.open("healthy")
        platform.worker("w1", processes=1)
        made.first = made.deploy("v1")
        assert platform.wait_ended(made.first) == "success", platform.log_of(made.first.id)
        yield made
    finally:
        made.remove()


def kill(site: Site, deployed: Deployed) -> None:
    site.platform.processes[0].kill()
    assert site.platform.wait_ended(deployed) in ("error: interrupted", "error: lost")


def test_a_worker_killed_before_the_switch_leaves_what_served(site: Site) -> None:
    (site.gate / "healthy").unlink()
    deployed = site.deploy("v2")
    until(lambda: "beside what serves" in site.platform.log_of(deployed.id), "the candidate runs")
    kill(site, deployed)
    assert site.containers() == {site.first.job: ("running", True), deployed.job: ("running", False)}
    site.open("healthy")
    site.open("stop")
    site.platform.worker("w2", processes=1)
    again = site.retry(deployed)
    assert site.platform.wait_ended(again) == "success", site.platform.log_of(again.id)
    assert "which an earlier attempt has left behind" in site.platform.log_of(again.id)
    assert site.containers() == {site.first.job: ("exited", False), again.job: ("running", True)}


def test_a_worker_killed_after_the_switch_leaves_the_new_version_serving(site: Site) -> None:
    deployed = site.deploy("v2")
    until(lambda: (site.gate / "stopping").exists(), "the one before is asked to stop")
    switched = f"switched: {site.name}"
    until(lambda: switched in site.platform.log_of(deployed.id), "the log says how far it went")
    kill(site, deployed)
    found = site.containers()
    assert found[deployed.job] == ("running", True)
    assert not found[site.first.job][1], "what was replaced serves no more"
    site.open("stop")
    site.platform.worker("w2", processes=1)
    again = site.retry(deployed)
    assert site.platform.wait_ended(again) == "success", site.platform.log_of(again.id)
    serving = {job: state for job, (state, serves) in site.containers().items() if serves}
    assert serving == {again.job: "running"}
